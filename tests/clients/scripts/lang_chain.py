"""LangChain's ChatOpenAI and OpenAI."""

from langchain_openai import ChatOpenAI, OpenAI
from said import API_KEY, BASE_URL, MODEL, PROMPT, TOKENS, say

asked = {
    "model": MODEL, "base_url": BASE_URL, "api_key": API_KEY, "temperature": 0,
    "max_tokens": TOKENS,
}  # fmt: skip
chat, plain = ChatOpenAI(**asked), OpenAI(**asked)
say(
    "langchain-openai",
    complete={"completions": plain.invoke(PROMPT), "chat": chat.invoke(PROMPT).content},
    stream={
        "completions": "".join(plain.stream(PROMPT)),
        "chat": "".join(piece.content for piece in chat.stream(PROMPT)),
    },
)
