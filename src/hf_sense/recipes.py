"""Named settings of ``build_dictionary``: what it takes where an option is not given. It builds nothing.

``docs/recipes.md`` has what each was measured to give, and on which text.
"""

from __future__ import annotations

import difflib
from typing import Any

# "paper": Wang, Zaki, Kollias, Kalantzis, Findings of ACL 2025, arXiv 2504.06036: 5 to max_senses senses a token, by a share of
# what Markov clustering counts. "words": what matched the meanings of words best.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {"metric": "l2", "method": "kmeans"},
    "paper": {"metric": "dot", "method": "paper"},
    "words": {"metric": "cosine", "method": "spherical_kmeans"},
}


def settings_of(recipe: str, **given: Any) -> dict[str, Any]:
    """The recipe's settings, with what is given, and not ``None``, in their place.

    Args:
        recipe: one of ``RECIPES``.
        **given: some of its settings.

    Raises:
        ValueError: if there is no such recipe.

    Example:
        >>> settings_of("paper", metric="l2", method=None)
        {'metric': 'l2', 'method': 'paper'}
    """
    if recipe not in RECIPES:
        near = difflib.get_close_matches(str(recipe), RECIPES, 1, 0.5)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"recipe should be one of {', '.join(RECIPES)}, but is {recipe!r}.{guess}")
    return RECIPES[recipe] | {name: value for name, value in given.items() if value is not None}
