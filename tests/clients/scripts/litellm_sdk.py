"""LiteLLM's two ways to a server of this kind."""

import litellm
from said import API_KEY, BASE_URL, MESSAGES, MODEL, PROMPT, TOKENS, say

asked = {"api_base": BASE_URL, "api_key": API_KEY, "temperature": 0, "max_tokens": TOKENS}


def chat(provider: str) -> str:
    answer = litellm.completion(model=f"{provider}/{MODEL}", messages=MESSAGES, **asked)
    return answer.choices[0].message.content


def streamed(provider: str) -> str:
    pieces = litellm.completion(
        model=f"{provider}/{MODEL}", messages=MESSAGES, stream=True, **asked
    )
    return "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)


plain = {"model": f"text-completion-openai/{MODEL}", "prompt": PROMPT, **asked}
pieces = litellm.text_completion(stream=True, **plain)
say(
    "litellm",
    complete={
        "completions": litellm.text_completion(**plain).choices[0].text,
        "chat": chat("openai"),
        "chat as hosted_vllm": chat("hosted_vllm"),
    },
    stream={
        "completions": "".join(p.choices[0].text or "" for p in pieces if p.choices),
        "chat": streamed("openai"),
        "chat as hosted_vllm": streamed("hosted_vllm"),
    },
)
