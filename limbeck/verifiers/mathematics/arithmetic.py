"""Trees computed at a point: rational numbers exactly, the others to as many digits as asked."""

from __future__ import annotations

import math
import threading
from fractions import Fraction
from typing import Any

from limbeck.errors import UserError
from limbeck.verifiers.mathematics.trees import Tree

MAX_BITS = 60_000  # of a number: 2006! has 19,000
MAX_WORK = 1_000_000  # bits of all the numbers on the way
GUARD = 20  # digits that rounding may spoil
GAMMA_DIGITS = 300  # to which a factorial of what is no whole number is computed
MAX_ANGLE = 10**2000
SAME = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth")
NAMED = {name: name for name in (*SAME, "asin", "acos", "atan")}  # in mpmath
NAMED |= {"ln": "log", "sgn": "sign"}
NAMED |= {f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc")}
NAMED |= {f"arc{name}h": f"a{name}h" for name in ("sin", "cos", "tan")}
Point = dict[str, Fraction]

_threads = threading.local()  # a precision belongs to one thread


class TooBig(Exception):
    """A number that nobody should compute."""


class NoValue(Exception):
    """Not a number: a division by zero, infinity, a list."""


class Arithmetic:
    """Computes trees at a point.

    `reach`: the most digits before or behind a point so far; `all_real`: no root of a negative
    number so far.
    """

    def __init__(self, point: Point, log_base: int, digits: int):
        self.point, self.log_base, self.digits = point, log_base, digits
        self.reach = self.work = 0
        self.all_real = True
        self.real = _context(digits + GUARD)

    def value_or_none(self, tree: Tree) -> Any:
        try:
            return self.value(tree)
        except (NoValue, ZeroDivisionError, ValueError):  # mpmath's for a pole
            return None

    def is_real(self, value: Any) -> bool:
        return value is not None and (
            isinstance(value, Fraction) or self.is_small(getattr(value, "imag", 0))
        )

    def is_small(self, value: Any) -> bool:
        """Whether a difference is nothing but rounding."""
        return bool(abs(self._inexact(value)) < self.real.mpf(10) ** (self.reach - self.digits))

    def value(self, tree: Tree) -> Any:
        """A Fraction where it is rational and easily seen to be, else mpmath's number."""
        match tree:
            case ("number", value):
                return self._seen(value)
            case ("name", name):
                return self._named(name)
            case ("sum", *terms):
                return self._sum([self.value(term) for term in terms])
            case ("product", a, b):
                return self._times(self.value(a), self.value(b))
            case ("quotient", a, b):
                return self._over(self.value(a), self.value(b))
            case ("power", a, b):
                return self._power(self.value(a), self.value(b))
            case ("call", "sqrt", a):
                return self._root(self.value(a), 2)
            case ("call", "cbrt", a):
                return self._root(self.value(a), 3)
            case ("call", "root", a, ("number", n)) if 0 < n < 1000 and n.denominator == 1:
                return self._root(self.value(a), int(n))
            case ("call", "root", a, n):
                return self._power(self.value(a), self._over(Fraction(1), self.value(n)))
            case ("call", "log", a):
                base = self._inexact(Fraction(self.log_base)) if self.log_base else self.real.e
                return self._logarithm(self.value(a), base)
            case ("call", "log", a, base):
                return self._logarithm(self.value(a), self._inexact(self.value(base)))
            case ("call", "lg", a):
                return self._logarithm(self.value(a), self._inexact(Fraction(10)))
            case ("call", "factorial", a):
                return self._factorial(self.value(a))
            case ("call", "binomial", n, k):
                return self._binomial(self.value(n), self.value(k))
            case ("call", "abs", a):
                return abs(self.value(a))
            case ("call", name, a):
                return self._called(name, self.value(a))
            case ("unit", a, "degrees"):
                return self._times(self.value(a), self._over(self.real.pi + 0, Fraction(180)))
            case ("unit", a, "%"):
                return self.value(a) / 100
        raise NoValue

    def _seen(self, value: Any) -> Any:
        """The value, once its size is taken into account."""
        if isinstance(value, Fraction):
            bits = value.numerator.bit_length() + value.denominator.bit_length()
            self.work += bits
            self.reach = max(self.reach, bits // 3)
            if bits > MAX_BITS or self.work > MAX_WORK:
                raise TooBig
            return value
        if value == 0:
            return Fraction(0)
        if not self.real.isfinite(value):
            raise NoValue
        self.all_real &= not getattr(value, "imag", 0)
        self.reach = max(self.reach, abs(self.real.mag(value)) // 3)
        if self.reach > MAX_BITS:
            raise TooBig
        return value

    def _rounded(self, value: Any) -> Any:
        """0 where digits suffice to see that a difference is nothing but rounding."""
        enough = self.digits >= 2 * self.reach + GUARD
        return Fraction(0) if enough and self.is_small(value) else value

    def _spend(self, times: int) -> None:
        """What a function takes, beside a multiplication."""
        self.work += times * self.digits
        if self.work > MAX_WORK:
            raise TooBig

    def _spend_on_gamma(self, times: int) -> None:
        """Its series is found anew for each precision, which takes seconds where that is high."""
        if self.digits > GAMMA_DIGITS:
            raise TooBig
        self._spend(times)

    def _inexact(self, value: Any) -> Any:
        if not isinstance(value, Fraction):
            return value
        return self.real.mpf(value.numerator) / value.denominator

    def _named(self, name: str) -> Any:
        if name in ("infty", "emptyset"):
            raise NoValue
        if name == "i":
            return self.real.mpc(0, 1)
        return getattr(self.real, name) + 0 if name in ("pi", "e") else self.point[name]

    def _sum(self, terms: list[Any]) -> Any:
        exact = sum((t for t in terms if isinstance(t, Fraction)), Fraction(0))
        rest = [term for term in terms if not isinstance(term, Fraction)]
        if not rest:
            return self._seen(exact)
        total = sum(rest, self._inexact(self._seen(exact)))
        return self._rounded(total)

    def _times(self, a: Any, b: Any) -> Any:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return self._seen(a * b)
        return self._seen(self._inexact(a) * self._inexact(b))

    def _over(self, a: Any, b: Any) -> Any:
        if b == 0:
            raise NoValue
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return self._seen(a / b)
        return self._seen(self._inexact(a) / self._inexact(b))

    def _power(self, a: Any, b: Any) -> Any:
        if a == 0:
            if not self.is_real(b) or self._inexact(b).real < 0:
                raise NoValue
            return Fraction(1 if b == 0 else 0)
        size = abs(self._inexact(b)) * abs(self.real.log(abs(self._inexact(a)), 2))
        if size > MAX_BITS:
            raise TooBig
        if isinstance(b, Fraction) and isinstance(a, Fraction):
            if b.denominator == 1:
                return self._seen(a ** int(b))
            if a > 0 and b.denominator <= 12 and (root := _exact_root(a, b.denominator)):
                return self._seen(root**b.numerator)
        self._spend(50)
        return self._seen(self.real.power(self._inexact(a), self._inexact(b)))

    def _root(self, a: Any, degree: int) -> Any:
        """The real root, if there is one."""
        if isinstance(a, Fraction):
            if a < 0 and degree % 2:
                return -self._root(-a, degree)
            if a == 0 or (a > 0 and degree <= 12 and (root := _exact_root(a, degree))):
                return a if a == 0 else root
        if degree == 2:
            return self._seen(self.real.sqrt(self._inexact(a)))
        if degree % 2 and self.is_real(a) and self._inexact(a).real < 0:
            return -self._root(-a, degree)
        return self._seen(self.real.root(self._inexact(a), degree))

    def _logarithm(self, a: Any, base: Any) -> Any:
        if a == 0 or base in (0, 1):
            raise NoValue
        self._spend(50)
        return self._sum([self.real.log(self._inexact(a)) / self.real.log(base), Fraction(0)])

    def _factorial(self, a: Any) -> Any:
        if abs(a) * 12 > MAX_BITS:
            raise TooBig
        if isinstance(a, Fraction) and a.denominator == 1:
            if a < 0:
                raise NoValue
            return self._seen(Fraction(math.factorial(int(a))))
        self._spend_on_gamma(500)
        return self._seen(self.real.factorial(self._inexact(a)))

    def _binomial(self, n: Any, k: Any) -> Any:
        if any(abs(x) * 12 > MAX_BITS for x in (n, k)):
            raise TooBig
        whole = all(isinstance(x, Fraction) and x.denominator == 1 and x >= 0 for x in (n, k))
        if whole:
            return self._seen(Fraction(math.comb(int(n), int(k))))
        self._spend_on_gamma(1500)
        return self._seen(self.real.binomial(self._inexact(n), self._inexact(k)))

    def _called(self, name: str, a: Any) -> Any:
        if name in ("floor", "ceil"):
            if isinstance(a, Fraction):
                return Fraction(math.floor(a) if name == "floor" else math.ceil(a))
            nearest = self.real.nint(a.real)  # log(32)/log(2) is a little more than 5
            whole = nearest if self.is_small(a - nearest) else getattr(self.real, name)(a.real)
            return Fraction(int(whole))
        if name == "exp":
            return self._power(self.real.e + 0, a)
        if name not in NAMED:
            raise NoValue
        size = abs(self._inexact(a))
        if size > MAX_BITS if "h" in name else size > MAX_ANGLE:
            raise TooBig
        self._spend(50)
        value = getattr(self.real, NAMED[name])(self._inexact(a))
        return self._seen(self._rounded(value))


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The root of a positive number, if it is rational."""
    parts = [_whole_root(part, degree) for part in (value.numerator, value.denominator)]
    return None if None in parts else Fraction(*(part for part in parts if part is not None))


def _whole_root(number: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(number)
    elif number.bit_length() < 900:
        root = round(number ** (1 / degree))
    else:
        return None
    return root if root**degree == number else None


def _context(digits: int) -> Any:
    """mpmath at a precision, in this thread."""
    try:
        from mpmath import MPContext
    except ImportError:
        way_out = "pip install 'limbeck[math]'"
        raise UserError("verifier math", "mpmath is not installed", way_out) from None
    if not hasattr(_threads, "context"):
        _threads.context = MPContext()
    _threads.context.dps = digits
    return _threads.context
