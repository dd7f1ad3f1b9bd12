"""Budget: what one request may still spend on upstream calls."""

from adapter.errors import BudgetExceeded


class Budget:
    """A cap on upstream calls, shared by all choices of a request."""

    def __init__(self, calls: int) -> None:
        self._cap = calls
        self._left = calls

    def take(self) -> None:
        """Take one call before it is made. Raises BudgetExceeded where none is left."""
        if self._left <= 0:
            raise BudgetExceeded(
                f"this request reached its cap of {self._cap} upstream calls "
                "(limits.calls_per_request); ask for fewer tokens or raise the cap"
            )
        self._left -= 1
