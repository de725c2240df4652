from pspo.metrics import REGISTRY, SECTIONS, page


def test_the_page_is_made_from_the_registry(root):
    assert (root / "docs/metrics.md").read_text() == page(), "run `make docs`"


def test_names_are_unique_and_explained():
    assert len(REGISTRY) == sum(map(len, SECTIONS.values()))
    assert all(metric.meaning.endswith(".") for metric in REGISTRY.values())
