"""Settings for the tiny models behind any upstream."""

from adapter.settings import Settings
from tests.support.tiny import tiny


def settings_for(base_url, *, api="completions", model="tiny", top_logprobs=20, **more):
    """One model named `tiny`; `pair` is the identity pair unless `other=True`."""
    models = tiny()
    other = more.pop("other", False)
    pair = {
        "experts": {"news": str(models.other_expert if other else models.expert)},
        "antiexpert": str(models.other_antiexpert if other else models.antiexpert),
        "device": "cpu",
    } | more.pop("pair", {})
    upstream = {
        "base_url": base_url,
        "model": model,
        "api": api,
        "tokenizer": f"hf:{models.upstream}",
        "top_logprobs": top_logprobs,
    } | more.pop("upstream", {})
    sections = {k: more.pop(k) for k in ("cache", "keys", "limits", "service") if k in more}
    return Settings.model_validate(
        {"models": {"tiny": {"upstream": upstream, "pair": pair} | more}} | sections
    )
