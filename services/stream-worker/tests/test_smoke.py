def test_clean(clean):
    print(len(clean))
    assert clean
