"""Puts endpoints of a region into Keystone's catalog: region.py REGION TYPE=URL…; without URLs it takes the region out."""
import json
import os
import sys
import urllib.request

AUTH, REGION, WANTED = os.environ["OS_AUTH_URL"], sys.argv[1], dict(a.split("=", 1) for a in sys.argv[2:])
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
HEADERS = {"Content-Type": "application/json"}


def call(method, path, body=None):
    data = json.dumps(body).encode() if body is not None else None
    with OPENER.open(urllib.request.Request(AUTH + path, data, HEADERS, method=method), timeout=60) as answer:
        text = answer.read()
        return answer.headers, json.loads(text) if text else None


domain = {"id": "default"}
user = {"name": os.environ["OS_USERNAME"], "domain": domain, "password": os.environ["OS_PASSWORD"]}
scope = {"project": {"name": os.environ["OS_PROJECT_NAME"], "domain": domain}}
headers, _ = call("POST", "/auth/tokens", {"auth": {
    "identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}})
HEADERS["X-Auth-Token"] = headers["X-Subject-Token"]

for endpoint in call("GET", "/endpoints")[1]["endpoints"]:
    if endpoint["region"] == REGION:
        call("DELETE", "/endpoints/" + endpoint["id"])
if WANTED:
    if REGION not in [r["id"] for r in call("GET", "/regions")[1]["regions"]]:
        call("POST", "/regions", {"region": {"id": REGION}})
    services = {s["type"]: s["id"] for s in call("GET", "/services")[1]["services"]}
    for kind, url in WANTED.items():
        for interface in ("public", "internal", "admin"):
            call("POST", "/endpoints", {"endpoint": {
                "service_id": services[kind], "interface": interface, "url": url, "region_id": REGION}})
