"""Fetches one pinned wheel from a package index, for a python3 without pip: NAME VERSION SHA256 DIRECTORY.

The index is pip's: $PIP_INDEX_URL, else index-url of pip.conf, else PyPI. Whoever calls checks the hash.
"""

import base64
import configparser
import html.parser
import os
import platform
import re
import shutil
import ssl
import sys
import urllib.parse
import urllib.request


def setting(name, default):
    value = os.environ.get("PIP_" + name.replace("-", "_").upper())
    home = os.path.expanduser("~")
    config_home = os.environ.get("XDG_CONFIG_HOME") or home + "/.config"
    files = [os.environ.get("PIP_CONFIG_FILE"), config_home + "/pip/pip.conf", home + "/.pip/pip.conf", "/etc/pip.conf"]
    for file in filter(None, files):
        config = configparser.RawConfigParser()
        config.read(file)
        for section in ("download", "global"):
            value = value or config.get(section, name, fallback=None)
    return value or default


def opened(url):
    parts = urllib.parse.urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host, fragment="")))
    if at:
        token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", "Basic " + token)
    trust = ssl.create_default_context(cafile=setting("cert", None))
    return urllib.request.urlopen(request, timeout=60, context=trust)


class Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag == "a" and dict(attrs).get("href"):
            self.found.append(dict(attrs)["href"])


def filename(link):
    return urllib.parse.unquote(urllib.parse.urlsplit(link).path).rpartition("/")[2]


def chosen(links, name, version, sha256):
    """The link that names the pinned hash; on an index without hashes the one that fits by its name."""
    prefix = re.sub(r"[-_.]+", "_", name).lower() + "-" + version + "-"
    named = [link for link in links if filename(link).lower().startswith(prefix) and link.partition("#")[0].endswith(".whl")]
    fits = re.compile(r"-any\.whl$|linux.*_" + re.escape(platform.machine()) + r"[^-]*\.whl$")
    by_hash = [link for link in named if "sha256=" + sha256 in link]
    by_name = [link for link in named if fits.search(filename(link))]
    return next(iter(by_hash + by_name), None)


def main(name, version, sha256, directory):
    page = setting("index-url", "https://pypi.org/simple").rstrip("/") + "/" + re.sub(r"[-_.]+", "-", name).lower() + "/"
    links = Links()
    with opened(page) as reply:
        links.feed(reply.read().decode())
    link = chosen(links.found, name, version, sha256)
    if link is None:
        sys.exit(f"no wheel of {name} {version} for this machine is on the index")
    with opened(urllib.parse.urljoin(page, link)) as reply, open(os.path.join(directory, filename(link)), "wb") as file:
        shutil.copyfileobj(reply, file)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, ValueError, configparser.Error) as error:
        sys.exit(f"{type(error).__name__}: {error}")
