"""The official client."""

from openai import OpenAI
from said import API_KEY, BASE_URL, MESSAGES, MODEL, PROMPT, TOKENS, say

client = OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)
asked = {"model": MODEL, "temperature": 0, "max_tokens": TOKENS}

whole = client.completions.create(prompt=PROMPT, **asked)
chat = client.chat.completions.create(messages=MESSAGES, **asked)
pieces = client.completions.create(prompt=PROMPT, stream=True, **asked)
chat_pieces = client.chat.completions.create(
    messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **asked
)
streamed = {
    "completions": "".join(p.choices[0].text for p in pieces if p.choices),
    "chat": "".join(p.choices[0].delta.content or "" for p in chat_pieces if p.choices),
}
with client.chat.completions.stream(messages=MESSAGES, logprobs=True, **asked) as events:
    helped = "".join(event.delta for event in events if event.type == "content.delta")
assert helped == streamed["chat"]
say(
    "openai",
    complete={
        "completions": whole.choices[0].text,
        "chat": chat.choices[0].message.content or "",
    },
    stream=streamed,
)
