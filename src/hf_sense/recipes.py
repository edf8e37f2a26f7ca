"""Named settings of ``build_dictionary``: what it takes where an option is not given. It builds nothing.

``docs/recipes.md`` has what each was measured to give, and on which text.
"""

from __future__ import annotations

import difflib

# "paper": Wang, Zaki, Kollias, Kalantzis, Findings of ACL 2025, arXiv 2504.06036: 5 to max_senses senses a token, by a share of
# what Markov clustering counts. "words": what matched the meanings of words best.
RECIPES = {
    "default": {"metric": "l2", "method": "kmeans"},
    "paper": {"metric": "dot", "method": "paper"},
    "words": {"metric": "cosine", "method": "spherical_kmeans"},
}


def settings_of(recipe: str, metric: str | None = None, method: str | None = None) -> tuple[str, str]:
    """Metric and method: those that are given, and the recipe's where they are not.

    Args:
        recipe: one of ``RECIPES``.
        metric: goes before the recipe's.
        method: likewise.

    Raises:
        ValueError: if there is no such recipe.

    Example:
        >>> settings_of("paper", metric="l2")
        ('l2', 'paper')
    """
    if recipe not in RECIPES:
        near = difflib.get_close_matches(str(recipe), RECIPES, 1, 0.5)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"recipe should be one of {', '.join(RECIPES)}, but is {recipe!r}.{guess}")
    return metric or RECIPES[recipe]["metric"], method or RECIPES[recipe]["method"]
