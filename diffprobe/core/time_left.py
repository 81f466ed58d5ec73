"""The time that work will still take, as text. Standard library only."""


def time_left(done: int, total: int, seconds: float) -> str:
    """Format the time that is left, by the mean speed so far.

    >>> time_left(10, 40, 60.0), time_left(0, 40, 60.0), time_left(1, 2, 7300.0)
    ('about 3 min left', 'time left unknown', 'about 2 h 1 min left')
    """
    if not done:
        return "time left unknown"
    left = (total - done) * seconds / done
    if left < 60:
        return f"about {int(left)} s left"
    hours, minutes = divmod(int(left // 60), 60)
    return f"about {hours} h {minutes} min left" if hours else f"about {minutes} min left"
