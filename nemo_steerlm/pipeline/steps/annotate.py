"""stub until annotation lands"""
def annotate(run): raise SystemExit("later")
def label_and_clean(run, files): raise SystemExit("later")
