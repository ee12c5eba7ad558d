"""Which emoji are forms of one another: what Unicode composes, and what it gives code points of their own."""

import re

_UNTOLD = re.compile(
    "-FE0F"  # variation selector: drawn in colour
    "|-1F3F[B-F]"  # skin tones
    "|-200D-1F9B[0-3]"  # joined: hair
    "|-200D-264[02]"  # joined: female, male
    "|-200D-27A1"  # joined: facing right
    "|-200D-219[45]"  # joined: the head shakes or nods
)
# What is drawn once for each gender -> what stands for all of them.
_ALIKE = {
    "1F468": "1F9D1",  # man, woman, person
    "1F469": "1F9D1",
    "1F466": "1F9D2",  # boy, girl, child
    "1F467": "1F9D2",
    "1F474": "1F9D3",  # old man, old woman, old person
    "1F475": "1F9D3",
    "1F934": "1FAC5",  # prince, princess, person with a crown
    "1F478": "1FAC5",
    "1F57A": "1F483",  # man dancing, woman dancing
    "1F930": "1FAC4",  # pregnant woman, man, person
    "1FAC3": "1FAC4",
}
# The same once more, of whole sequences whose parts are put by _ALIKE.
_SAME = {
    "1F385": "1F9D1-200D-1F384",  # Father, Mother, Mx Christmas
    "1F936": "1F9D1-200D-1F384",
    "1F931": "1F9D1-200D-1F37C",  # breast-feeding, feeding a baby
    "1F46B": "1F9D1-200D-1F91D-200D-1F9D1",  # woman and man, men, women, people holding hands
    "1F46C": "1F9D1-200D-1F91D-200D-1F9D1",
    "1F46D": "1F9D1-200D-1F91D-200D-1F9D1",
    "1F48F": "1F9D1-200D-2764-200D-1F48B-200D-1F9D1",  # kiss
    "1F491": "1F9D1-200D-2764-200D-1F9D1",  # couple with heart
    "1F46A": "1F9D1-200D-1F9D1-200D-1F9D2",  # family
    # Territories that fly the very flag of another, so that the pictures are equal.
    "1F1ED-1F1F2": "1F1E6-1F1FA",  # HM, AU
    "1F1EA-1F1E6": "1F1EA-1F1F8",  # EA, ES
    "1F1E8-1F1F5": "1F1EB-1F1F7",  # CP, FR
    "1F1F2-1F1EB": "1F1EB-1F1F7",  # MF, FR
    "1F1E9-1F1EC": "1F1EE-1F1F4",  # DG, IO
    "1F1E7-1F1F6": "1F1F3-1F1F1",  # BQ, NL
    "1F1E7-1F1FB": "1F1F3-1F1F4",  # BV, NO
    "1F1F8-1F1EF": "1F1F3-1F1F4",  # SJ, NO
    "1F1E6-1F1E8": "1F1F8-1F1ED",  # AC, SH
    "1F1F9-1F1E6": "1F1F8-1F1ED",  # TA, SH
    "1F1FA-1F1F2": "1F1FA-1F1F8",  # UM, US
}


def group_of(unified: str) -> str:
    """Returns what all forms of an emoji have in common: '1F9D1-200D-1F680' for every astronaut.

    Args:
      unified: its code points in hexadecimal, such as '1F469-1F3FD-200D-1F680'.
    """
    code = _UNTOLD.sub("", unified)
    code = "-".join(_ALIKE.get(point, point) for point in code.split("-"))
    return _SAME.get(code, code)
