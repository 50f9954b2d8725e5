"""Targets and callbacks for other libraries; each file needs its library only when it is used."""
