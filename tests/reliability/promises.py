"""The promises, by the id that tests carry: `@pytest.mark.reliability("A1")`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    says: str
    goal: str


PROMISES = {
    "A1": Promise("a cancelled Redis read never gives its answer to another", "0 foreign values in 10,000 cancelled reads; redis-py 4.5.1 shows some"),
    "A2": Promise("an entry under another's key is a miss", "0 accepted of 10,000"),
    "A3": Promise("a bad entry is a miss", "0 exceptions and 0 accepted of 100,000"),
    "A4": Promise("keys are injective", "0 collisions in 1,000,000; absent is not empty"),
    "A5": Promise("tenants do not meet", "0 shared keys of 10,000; hit/miss timing across tenants AUC 0.45 to 0.55 at n = 2,000"),
    "A7": Promise("the cache changes nothing but time", "1,000 prompts off, cold, warm, frozen midway: the same, but for the engine's noise (≤ 1 % of prompts, best two within 2e-3 nats)"),
    "A8": Promise("the cache cannot be filled", "1,000,000 prefixes: entries ≤ 64 KiB, a TTL on every key, memory bounded"),
    "A9": Promise("no executable formats", "0 findings of S301, S302, S307, TID251"),
    "B1": Promise("Redis is optional", "0 failed of 1,000 requests for each fault"),
    "B2": Promise("and cheap to lose", "≤ 50 ms for the first 3 calls, ≤ 1 ms with the breaker open (p99)"),
    "B3": Promise("it comes back", "hits within 10 s of SIGCONT after 30 s; one probe at a time"),
    "B4": Promise("an outage is quiet", "≤ 2 log lines a change of state in 10,000 requests, no traceback"),
    "B5": Promise("money fails closed", "without Redis only the rest of the leases is spent"),
    "C1": Promise("reserve before the call", "200 requests to 3 replicas, a cap worth 50 calls: ≤ 50 paid in 100 runs"),
    "C2": Promise("a request has a ceiling", "an answer that never ends: calls ≤ max_tokens"),
    "C3": Promise("attempts are paid", "an answer after our timeout is counted and charged"),
    "C4": Promise("a hang-up stops spending", "1,000 hang-ups: 0 calls begun after it is seen, 0 tasks, reservations, sockets left"),
    "C5": Promise("clients do not multiply cost", "the OpenAI SDK: 1 request where a retry cannot help; an honest retry repeats ≤ 10 % of paid calls"),
    "C6": Promise("tests cannot spend", "0 connections beyond loopback"),
    "C7": Promise("caps need no scripts", "exact with an account without EVAL"),
    "D1": Promise("any answer gives a sound distribution or a typed error", "0 other outcomes of 100,000"),
    "D2": Promise("our JSON is JSON", "0 NaN or Infinity in any response"),
    "D3": Promise("retries are bounded", "60 s of 50 requests/s, all 503: ≤ 1.2 × requests + 3 calls, ≤ 3 attempts each"),
    "D4": Promise("Retry-After is obeyed", "never earlier than asked, > 120 s not waited for"),
    "D5": Promise("jitter spreads", "1,000 clients after one 429: no 100 ms holds > 5 %"),
    "D6": Promise("deadlines hold", "silent, semi-silent, dripping: error within the deadline + 100 ms"),
    "D7": Promise("steering is never lost silently", "an error, or x-steering: off; 0 unsteered answers marked on"),
    "D8": Promise("text leaves whole", "10,000 byte sequences: valid UTF-8, nothing lost; no half character sent upstream"),
    "D9": Promise("a breaker for the upstream", "30 s down: ≤ 1 probe a second; normal within 5 s"),
    "E1": Promise("no silent truncation", "1,000 cuts end with a finish and [DONE], or the OpenAI SDK raises"),
    "E4": Promise("one computation for each prefix", "100 at once on each of 3 replicas: ≤ 3 calls a prefix; 1,000 cancelled leaders, all followers finish"),
    "E5": Promise("a graceful stop", "SIGTERM with 50 streams: 0 cut without an error event; others answered, or a 503; exit 0 within 30 s"),
    "E8": Promise("the event loop stays free", "stall ≤ 50 ms with the worst inputs"),
    "F3": Promise("secrets never appear", "0 hits of any 8 characters in logs at DEBUG, errors, metrics, repr"),
    "F4": Promise("prompts are not logged", "0 hits of any 8 characters in the same places"),
    "F14": Promise("Redis has least rights", "get, set, incrby, expire, del, ping; all others refused"),
}  # fmt: skip
