"""Views: the image itself first, no view twice."""

import pytest

from fastcnn.training.views import TTA, View, views_of

pytestmark = pytest.mark.small


def test_the_views_of_each_name():
    assert views_of(None) == (View(),)
    assert views_of("flip") == (View(), View(True))
    assert {view[1:] for view in views_of("shift")} == {(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)}
    assert set(views_of("flip+shift")) == {View(side, *view[1:]) for side in (0, 1) for view in views_of("shift")}
    for name in TTA:
        assert views_of(name)[0] == View() and len(set(views_of(name))) == len(views_of(name))
    assert views_of(False) == views_of(None)
    for wrong in ("crop", True, ["flip"]):
        with pytest.raises(ValueError, match="tta must be"):
            views_of(wrong)
