from diffprobe.probes.sae import KSAE
from diffprobe.probes.sae.hub import write_hub_folder


def test_the_folder_of_an_upload_has_a_card_and_loads(make_sae, x, tmp_path):
    sae = make_sae("batch_topk")
    cell = "mid_block@t100:empty:mean"
    folder = write_hub_folder(
        sae, tmp_path, repo_id="someone/mid", cell=cell, backbone="emoji-sd", licence="cc0-1.0", metrics={"fvu": 0.25}
    )
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "probe.json", "probe.safetensors"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffprobe\n") and "license: cc0-1.0\n---\n" in card
    assert f"cell `{cell}` of `emoji-sd`" in card and 'from_hub("someone/mid")' in card
    assert "| k | 4 |" in card and "| fvu | 0.25 |" in card
    assert KSAE.from_pretrained(folder)(x)[0].equal(sae(x)[0])


def test_a_card_says_what_is_not_known(make_sae, tmp_path):
    card = (write_hub_folder(make_sae(), tmp_path, repo_id="a/b") / "README.md").read_text()
    assert "license" not in card and "`not recorded`" in card and "held-out" not in card
