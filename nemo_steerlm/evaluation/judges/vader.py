"""Sentiment by VADER (Hutto and Gilbert 2014), a lexicon with rules."""

from __future__ import annotations

from nemo_steerlm.evaluation.judges import Judge


def judge() -> Judge:
    """VADER's compound score, -1 (most negative) to 1 (most positive)."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return lambda text: float(analyzer.polarity_scores(text)["compound"])
