"""The words of mathematical answers."""

from __future__ import annotations


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


FUNCTIONS = _set(
    """
    sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan arccot asin acos atan
    arcsinh arccosh arctanh ln log lg exp sqrt abs floor ceil sgn cbrt max min gcd lcm
    """
)
NAMES = _set(
    """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi
    pi rho varrho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi
    Sigma Phi Psi Omega hbar ell infty emptyset varnothing infinity aleph odot oplus triangle
    angle Re Im
    """
)
SIGNS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "over": "/", "cup": "∪", "cap": "∩",
    "setminus": "∖", "backslash": "∖", "pm": "±", "mp": "∓", "langle": "⟨", "rangle": "⟩",
    "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "lvert": "|", "rvert": "|",
    "vert": "|", "mid": "|", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "colon": ":",
    "le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=",
    "lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "in": "in", "notin": "notin", "approx": "~",
    "simeq": "~", "sim": "~", "lor": ",", "land": ",", "vee": ",", "wedge": ",",
}  # fmt: skip
TEXTS = _set(
    """
    text textbf textit textrm textsf texttt mbox hbox mathrm mathbf operatorname mathit mathsf
    mathcal mathbb boldsymbol textnormal emph mathfrak mathscr bm
    """
)
UPRIGHT = _set("text textrm textnormal mathrm mbox hbox operatorname")
HATS = _set(
    """
    overline vec hat bar widehat tilde widetilde dot ddot underline overrightarrow
    overleftrightarrow overarc
    """
)
HEAVY = _set("int iint oint sum prod lim det partial")  # more than the grammar can do
UNITS = _set(
    """
    cm mm km dm kg mg ml mL ft yd lb lbs oz hr hrs min mins sec secs mph pct am pm AM PM gm
    th st nd rd in sq deg rad Hz USD
    """
)
LETTERS = _set("m g s h l L J N W V A K C F T")  # units, where they stand upright behind a number
CHARACTERS = str.maketrans({
    "∞": r"\infty ", "π": r"\pi ", "√": " sqrt ", "∪": r"\cup ", "∩": r"\cap ", "×": "*",
    "·": "*", "⋅": "*", "∗": "*", "÷": "/", "∕": "/", "−": "-", "–": "-", "—": "-", "±": r"\pm ",
    "∓": r"\mp ", "°": r"^\circ ", "′": "'", "’": "'", "⟨": r"\langle ", "⟩": r"\rangle ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∈": r"\in ", "≈": r"\approx ", "∖": r"\setminus ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∅": r"\emptyset ",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ",
    "μ": r"\mu ", "φ": r"\phi ", "ω": r"\omega ", "σ": r"\sigma ", "δ": r"\delta ",
    "ε": r"\epsilon ", "ρ": r"\rho ", "τ": r"\tau ", "ℝ": r"\mathbb{R}", "、": ",",
})  # fmt: skip
SYNONYMS = {
    "inch": "in", "feet": "ft", "foot": "ft", "yard": "yd", "mile": "mi", "meter": "m",
    "metre": "m", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "kilometer": "km",
    "kilometre": "km", "gram": "g", "kilogram": "kg", "milligram": "mg", "second": "s", "sec": "s",
    "minute": "min", "hour": "h", "hr": "h", "day": "day", "week": "week", "month": "month",
    "year": "year", "percent": "%", "percentage": "%", "pct": "%", "degree": "deg", "radian": "rad",
    "pound": "lb", "ounce": "oz", "liter": "l", "litre": "l", "ml": "ml", "dollar": "$",
    "cent": "cent", "am": "am", "pm": "pm", "euro": "€", "thousand": "thousand",
    "million": "million", "billion": "billion", "hundred": "hundred", "trillion": "trillion",
    "dozen": "dozen",
}  # fmt: skip
SCALES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
NUMBERS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12,
}  # fmt: skip
