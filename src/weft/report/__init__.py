"""WHAT A PERSON SEES of a run: its folder read back, one screen of status, one page of figures."""
