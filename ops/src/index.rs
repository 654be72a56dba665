//! A package index, as PyPI and its mirrors speak: one page a package, in JSON or HTML, with a link and a hash a file.

use std::cell::OnceCell;
use std::fmt;
use std::sync::LazyLock;

use anyhow::{Result, bail};
use clap::Args;
use percent_encoding::percent_decode_str;
use regex::Regex;
use serde::Deserialize;
use ureq::http::header;
use url::Url;

use crate::web::{Failure, Reply, Web, broken, host, is_web};
use crate::wheel::Wheel;

/// The index of everybody who names no other.
const PYPI: &str = "https://pypi.org/simple";
/// No page that we need is a hundredth of this.
const PAGE_BYTES_MAX: u64 = 64 << 20;
/// JSON if it can, HTML if it must, as pip asks.
const ACCEPT: &str = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";

/// Where pinned files come from.
#[derive(Clone, Debug, Args)]
pub(crate) struct Choice {
    /// Package index that pinned files come from [default: PIP_INDEX_URL, else PyPI].
    #[arg(long, env = "FLOTILLA_INDEX", value_name = "URL", hide_env_values = true)]
    index: Option<Address>,
}

/// The address of an index as it was given: it may hold a password.
#[derive(Clone, PartialEq, Eq)]
struct Address(String);

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address")
    }
}

impl From<String> for Address {
    fn from(text: String) -> Address {
        Address(text)
    }
}

/// An index that is asked when something is missing, and not before.
pub(crate) struct Source {
    address: Address,
    index: OnceCell<Index>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl Source {
    /// The chosen index, else the one that pip was set to, else PyPI.
    pub(crate) fn choose(choice: Choice, pip: Option<String>) -> Source {
        let pip = pip.filter(|address| !address.is_empty()).map(Address);
        let address = choice.index.or(pip).unwrap_or_else(|| Address(PYPI.to_owned()));
        Source { address, index: OnceCell::new() }
    }

    /// An index of a test.
    #[cfg(test)]
    pub(crate) fn of_a_test(pages: &Url, patience: crate::web::Patience) -> Source {
        let address = Address(pages.to_string());
        let index = Index::at(&address, Web::of_a_test(patience)).unwrap();
        Source { address, index: index.into() }
    }

    /// Ready to be asked.
    pub(crate) fn index(&self) -> Result<&Index> {
        if let Some(index) = self.index.get() {
            return Ok(index);
        }
        let index = Index::at(&self.address, Web::of_this_machine()?)?;
        Ok(self.index.get_or_init(|| index))
    }
}

/// A package index.
pub(crate) struct Index {
    /// Where its pages lie; without a password.
    pages: Url,
    /// The way to it.
    pub(crate) web: Web,
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.pages.as_str().trim_end_matches('/'))
    }
}

/// Where a file lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its address.
    pub(crate) url: Url,
    file: String,
    sha256: Option<String>,
}

impl Index {
    /// The message never holds the address itself: it may hold a password.
    fn at(address: &Address, mut web: Web) -> Result<Index> {
        let Some(mut pages) = Url::parse(address.0.trim()).ok().filter(is_web) else {
            bail!("--index, FLOTILLA_INDEX or PIP_INDEX_URL is no address of an index; they look like {PYPI}");
        };
        web.keep_key_of(&mut pages);
        // Only below a folder are pages found.
        let folder = format!("{}/", pages.path().trim_end_matches('/'));
        pages.set_path(&folder);
        Ok(Index { pages, web })
    }

    /// Where a wheel lies.
    pub(crate) fn link(&self, wheel: &Wheel) -> Result<Link, Failure> {
        let page = self.pages.join(&format!("{}/", normal(&wheel.name, "-")));
        let page =
            page.map_err(|error| Failure::Lasting(format!("{} is no name of a package: {error}", wheel.name)))?;
        let reply = self.web.get(&page, &[("accept", ACCEPT)])?;
        let links = links(reply)?;
        chosen(&links, wheel).cloned().ok_or_else(|| {
            Failure::Lasting(format!("{} has no file of {wheel} with the pinned sha256 {}", host(&page), wheel.sha256))
        })
    }
}

/// A package's name as indexes and file names have it.
fn normal(name: &str, dash: &str) -> String {
    let words: Vec<&str> = name.split(['-', '_', '.']).filter(|word| !word.is_empty()).collect();
    words.join(dash).to_ascii_lowercase()
}

/// The link with the pinned hash; on an index without hashes the one that fits this machine by its name.
fn chosen<'a>(links: &'a [Link], wheel: &Wheel) -> Option<&'a Link> {
    let pinned = links.iter().find(|link| link.sha256.as_deref() == Some(wheel.sha256.as_str()));
    pinned.or_else(|| links.iter().find(|link| link.sha256.is_none() && fits(&link.file, wheel)))
}

/// `NAME-VERSION-PYTHON-ABI-PLATFORM.PLATFORM.whl`
fn fits(file: &str, wheel: &Wheel) -> bool {
    let file = file.to_ascii_lowercase();
    let prefix = format!("{}-{}-", normal(&wheel.name, "_"), wheel.version);
    let Some(tags) = file.strip_suffix(".whl").and_then(|file| file.strip_prefix(&prefix)) else { return false };
    let runs_here = |platform: &str| {
        platform == "any" || (platform.contains("linux") && platform.ends_with(&format!("_{}", std::env::consts::ARCH)))
    };
    tags.rsplit('-').next().is_some_and(|platforms| platforms.split('.').any(runs_here))
}

fn links(reply: Reply) -> Result<Vec<Link>, Failure> {
    let Reply { url, response } = reply;
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let json = kind.is_some_and(|kind| kind.to_ascii_lowercase().contains("json"));
    let page = response.into_body().into_with_config().limit(PAGE_BYTES_MAX).read_to_vec();
    let page = page.map_err(|error| match error {
        ureq::Error::BodyExceedsLimit(_) => Failure::Lasting(format!("the page {url} has no end")),
        error => broken(&error.into_io()),
    })?;
    if !json {
        return Ok(of_html(&String::from_utf8_lossy(&page), &url));
    }
    of_json(&page, &url).map_err(|error| Failure::Lasting(format!("the page {url} is not that of an index: {error}")))
}

/// PEP 691.
#[derive(Deserialize)]
struct Page {
    files: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: Hashes,
}

#[derive(Default, Deserialize)]
struct Hashes {
    sha256: Option<String>,
}

fn of_json(page: &[u8], base: &Url) -> serde_json::Result<Vec<Link>> {
    let page: Page = serde_json::from_slice(page)?;
    let link = |listed: Listed| {
        let url = base.join(&listed.url).ok().filter(is_web)?;
        let sha256 = listed.hashes.sha256.map(|hash| hash.to_ascii_lowercase());
        Some(Link { url, file: listed.filename, sha256 })
    };
    Ok(page.files.into_iter().filter_map(link).collect())
}

/// PEP 503: every file is an anchor, its hash the fragment of the address.
fn of_html(page: &str, base: &Url) -> Vec<Link> {
    static ANCHOR: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"(?is)<a\s[^>]*?\bhref\s*=\s*(?:"([^"]*)"|'([^']*)')"#).expect("a fixed expression")
    });
    let link = |anchor: regex::Captures<'_>| {
        let href = anchor.get(1).or_else(|| anchor.get(2))?.as_str().trim().replace("&amp;", "&");
        let url = base.join(&href).ok().filter(is_web)?;
        let file = percent_decode_str(url.path_segments()?.next_back()?).decode_utf8_lossy().into_owned();
        let sha256 = url.fragment().and_then(|fragment| fragment.strip_prefix("sha256=")).map(str::to_ascii_lowercase);
        Some(Link { url, file, sha256 })
    };
    ANCHOR.captures_iter(page).filter_map(link).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::{Answer, Stage};
    use crate::web::Patience;

    const ONCE: Patience =
        Patience { tries: 1, pause: std::time::Duration::ZERO, silence: std::time::Duration::from_secs(60) };

    fn wheel(sha256: &str) -> Wheel {
        Wheel { name: "Some.Name".into(), version: "1.0".into(), sha256: sha256.into() }
    }

    fn index(stage: &Stage) -> Index {
        let mut address = stage.url("/root/simple");
        address.set_username("ada").unwrap();
        Index::at(&Address(address.to_string()), Web::of_a_test(ONCE)).unwrap()
    }

    #[test]
    fn an_index_that_speaks_json_is_asked_for_it() {
        let stage = Stage::open(|asked| {
            assert!(asked.header("accept").unwrap().starts_with("application/vnd.pypi.simple.v1+json"));
            let file = |name: &str, hash: &str| serde_json::json!({"filename": name, "url": format!("../../files/{name}"), "hashes": {"sha256": hash}});
            let files = [file("some_name-1.0-py3-none-any.whl", "0B"), file("some_name-1.0.tar.gz", "0C")];
            let page = serde_json::json!({"meta": {"api-version": "1.1"}, "name": "some-name", "files": files});
            Answer::text(&page.to_string()).with("Content-Type: application/vnd.pypi.simple.v1+json")
        });
        let index = index(&stage);
        assert_eq!(index.to_string(), stage.url("/root/simple").as_str(), "without the user");
        let link = index.link(&wheel("0b")).unwrap();
        assert_eq!(link.url, stage.url("/root/files/some_name-1.0-py3-none-any.whl"));
        assert_eq!(stage.paths(), ["/root/simple/some-name/"]);
        assert!(stage.asked()[0].header("authorization").is_some());
        assert!(matches!(index.link(&wheel("0d")), Err(Failure::Lasting(why)) if why.contains("0d")));
    }

    #[test]
    fn an_index_that_speaks_only_html_is_understood_wherever_it_leads() {
        let stage = Stage::open(|asked| {
            match asked.path.as_str() {
            "/root/simple/some-name/" => Answer::redirect("/moved/here/"),
            _ => Answer::text(
                "<html><head><a-b href=\"x\"></head><A class=a\n HREF='../f/some_name-1.0.1-py3-none-any.whl#sha256=0A'>x</a>
                 <a data-x=\"1\" href=\"../f/some%5Fname-1.0-py3-none-any.whl?a=1&amp;b=2#sha256=0B\">y</a>",
            )
            .with("Content-Type: text/html; charset=utf-8"),
        }
        });
        let link = index(&stage).link(&wheel("0b")).unwrap();
        assert_eq!(
            link.url.as_str(),
            stage.url("/moved/f/some%5Fname-1.0-py3-none-any.whl?a=1&b=2#sha256=0B").as_str()
        );
        assert_eq!(link.file, "some_name-1.0-py3-none-any.whl");
    }

    #[test]
    fn without_hashes_the_name_decides_and_a_wrong_hash_is_never_chosen() {
        let arch = std::env::consts::ARCH;
        let link = |file: &str, sha256: Option<&str>| Link {
            url: Url::parse("http://localhost/").unwrap(),
            file: file.to_owned(),
            sha256: sha256.map(str::to_owned),
        };
        let here = format!("Some_Name-1.0-py3-none-manylinux2014_{arch}.manylinux_2_17_{arch}.whl");
        let links = [
            link("some_name-1.0-py3-none-any.whl", Some("0a")),
            link("some_name-1.0.1-py3-none-any.whl", None),
            link("some_name-1.0.tar.gz", None),
            link("some_name-1.0-py3-none-macosx_11_0_arm64.whl", None),
            link("some_name-1.0-py3-none-manylinux_2_17_other.whl", None),
            link(&here, None),
        ];
        assert_eq!(chosen(&links, &wheel("0b")).unwrap().file, here);
        assert_eq!(chosen(&links, &wheel("0a")).unwrap().file, links[0].file);
        assert_eq!(chosen(&links[..5], &wheel("0b")), None);
    }

    #[test]
    fn an_address_is_chosen_in_order_and_never_printed() {
        let choose = |index: Option<&str>, pip: Option<&str>| {
            let choice = Choice { index: index.map(|text| Address(text.to_owned())) };
            Source::choose(choice, pip.map(str::to_owned)).address.0
        };
        assert_eq!(choose(Some("a"), Some("b")), "a");
        assert_eq!(choose(None, Some("b")), "b");
        assert_eq!(choose(None, Some("")), PYPI);
        let secret = Address("https://user:secret@".to_owned());
        assert!(!format!("{secret:?}").contains("secret"));
        let error = Index::at(&secret, Web::of_a_test(ONCE)).err().unwrap();
        assert!(!format!("{error:#}").contains("secret"), "{error:#}");
    }
}
