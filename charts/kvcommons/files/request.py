"""`helm test`: the operator is ready; and where a router is named, it answers a chat. Standard library alone."""

import json
import os
import sys
import time
import urllib.error
import urllib.request

DEADLINE = time.monotonic() + float(os.environ["TIMEOUT_SECONDS"])
PAUSE_SECONDS = 2.0


def ask(url, body=None):
    """The answer's JSON; tries again, until the deadline, what is not there yet."""
    headers = {"Content-Type": "application/json"}
    if os.environ.get("API_KEY"):
        headers["Authorization"] = "Bearer " + os.environ["API_KEY"]
    while True:
        request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
        left = DEADLINE - time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=max(1.0, left)) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = f"{url}: {error.code} {error.read(500).decode(errors='replace')}"
            if error.code not in (429, 502, 503, 504):
                sys.exit(said)
        except (OSError, ValueError) as error:
            said = f"{url}: {error}"
        if time.monotonic() + PAUSE_SECONDS > DEADLINE:
            sys.exit(f"no answer in time; the last try: {said}")
        time.sleep(PAUSE_SECONDS)


print("operator:", json.dumps(ask(os.environ["OPERATOR_URL"] + "/readyz")))
router = os.environ.get("ROUTER_URL", "").rstrip("/").removesuffix("/v1")
if router:
    model = os.environ.get("MODEL") or ask(router + "/v1/models")["data"][0]["id"]
    chat = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    answer = ask(router + "/v1/chat/completions", chat)
    print("router:", json.dumps(answer["choices"][0]["message"]["content"]))
else:
    print("router: none was named; set test.url to a router's address to send it a request")
