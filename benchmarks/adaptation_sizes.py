"""Row d's sizes, for both sides."""

WAY, SHOT, QUERY, LR = 5, 5, 15, 0.01


def sizes(quick: bool) -> tuple[int, int, int]:
    """Tasks, features, inner steps."""
    return (4, 40, 10) if quick else (64, 640, 100)


def many(quick: bool) -> tuple[int, int]:
    """Tasks that each base-learner adapts to in one call, and how many of them its rival is timed on."""
    return (8, 4) if quick else (1000, 50)
