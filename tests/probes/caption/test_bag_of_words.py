import torch

from diffprobe.probes.caption.bag_of_words import WordVectors


def test_words_weigh_by_their_rarity_and_unknown_ones_are_left_out():
    vectors = WordVectors(["noto emoji, cat", "noto emoji, dog", "twemoji emoji, cat", "noto emoji, cat"])
    found = vectors(["cat, cat noto", "emoji", "zebra dog", ""])
    columns = {"cat": 0, "dog": 1, "emoji": 2, "noto": 3, "twemoji": 4}
    expected = torch.zeros(4, 5)
    expected[0, columns["cat"]] = expected[0, columns["noto"]] = torch.tensor(4 / 3).log()
    expected[2, columns["dog"]] = torch.tensor(4.0).log()  # "emoji" is in all captions and tells nothing
    torch.testing.assert_close(found, expected)


def test_a_limited_vocabulary_has_the_most_frequent_words_and_a_fixed_width():
    captions = ["red cat", "red dog", "blue cat", "red owl"]
    two, nine = WordVectors(captions, width=2), WordVectors(captions, width=9)
    assert (two(["red cat owl"]) != 0).tolist() == [[True, True]]
    assert two(["owl blue dog"]).count_nonzero() == 0
    assert nine(captions).shape == (4, 9) and not nine(captions)[:, 5:].any()
    torch.testing.assert_close(WordVectors(captions)(captions).sum(1), nine(captions).sum(1))
