"""LlamaIndex' OpenAILike, as a chat model and as a plain one."""

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from said import API_KEY, BASE_URL, MODEL, PROMPT, TOKENS, say


def model(is_chat: bool) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=BASE_URL,
        api_key=API_KEY,
        is_chat_model=is_chat,
        temperature=0,
        max_tokens=TOKENS,
        context_window=1024,
    )


plain, chat, turns = model(False), model(True), [ChatMessage(role="user", content=PROMPT)]
say(
    "llama-index-llms-openai-like",
    complete={
        "completions": plain.complete(PROMPT).text,
        "chat": chat.chat(turns).message.content or "",
    },
    stream={
        "completions": "".join(p.delta or "" for p in plain.stream_complete(PROMPT)),
        "chat": "".join(p.delta or "" for p in chat.stream_chat(turns)),
    },
)
