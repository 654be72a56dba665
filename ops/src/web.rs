//! The web as `flotilla` reaches it: whom it trusts, how long it waits, and who alone hears a password.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use base64::Engine as _;
use percent_encoding::percent_decode_str;
use ureq::config::Config;
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, Error, Proxy};
use url::{Origin, Url};

/// A name and a connection come within this, or not at all.
const CONNECT: Duration = Duration::from_secs(20);
/// An index may have to make its page first.
const ANSWER: Duration = Duration::from_secs(60);
/// As browsers have it, and more than any index needs.
const REDIRECTS_MAX: usize = 10;

/// How long, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Tries in a row that bring nothing new.
    pub(crate) tries: u32,
    /// Pause after the first of them; it doubles with each.
    pub(crate) pause: Duration,
    /// A transfer of which nothing came for so long has failed; a slow one goes on.
    pub(crate) silence: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { tries: 5, pause: Duration::from_secs(1), silence: Duration::from_secs(60) }
    }
}

/// Why something did not come.
#[derive(Debug)]
pub(crate) enum Failure {
    /// May be over the next time.
    Passing(String),
    /// Will be the same every time.
    Lasting(String),
    /// It came, but could not be kept here.
    Disk(io::Error),
}

/// A password, and who alone hears it.
struct Key {
    origin: Origin,
    authorization: String,
}

/// What answers.
pub(crate) struct Reply {
    /// Where it was found, after all redirects.
    pub(crate) url: Url,
    /// Status, headers, and a body that is yet to come.
    pub(crate) response: Response<Body>,
}

/// A way to the web.
pub(crate) struct Web {
    agent: Agent,
    key: Option<Key>,
    /// How long, and how often.
    pub(crate) patience: Patience,
}

impl Web {
    /// With the certificates and the proxy that this machine is set to.
    pub(crate) fn of_this_machine() -> Result<Web> {
        Ok(Web::new(trusted()?, Proxy::try_from_env(), Patience::default()))
    }

    /// To servers of a test, whatever this machine is set to.
    #[cfg(test)]
    pub(crate) fn of_a_test(patience: Patience) -> Web {
        Web::new(RootCerts::WebPki, None, patience)
    }

    fn new(roots: RootCerts, proxy: Option<Proxy>, patience: Patience) -> Web {
        let config = Config::builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .proxy(proxy)
            .user_agent(concat!("flotilla/", env!("CARGO_PKG_VERSION")))
            // Followed by us: the password goes to one origin only, and its port is part of that.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_send_request(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(patience.silence))
            .build();
        Web { agent: config.new_agent(), key: None, patience }
    }

    /// Takes user and password out of an address; from then on its origin, and nobody else, hears them.
    pub(crate) fn keep_key_of(&mut self, url: &mut Url) {
        let part = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (user, password) = (part(url.username()), part(url.password().unwrap_or_default()));
        strip(url);
        if !user.is_empty() || !password.is_empty() {
            let token = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            self.key = Some(Key { origin: url.origin(), authorization: format!("Basic {token}") });
        }
    }

    /// Asks for what stands at an address. Other answers than 200, 206 and 416 are failures.
    pub(crate) fn get(&self, url: &Url, headers: &[(&str, &str)]) -> Result<Reply, Failure> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            strip(&mut url);
            let response = self.ask(&url, headers).map_err(|error| failure(&self.peer(&url), error))?;
            let Some(next) = redirect(&url, &response)? else {
                return match refused(&url, response.status()) {
                    Some(failure) => Err(failure),
                    None => Ok(Reply { url, response }),
                };
            };
            url = next;
        }
        Err(Failure::Lasting(format!("{} redirects more than {REDIRECTS_MAX} times", host(&url))))
    }

    /// Who is spoken with, for messages: the proxy too, but never its password.
    fn peer(&self, url: &Url) -> String {
        let host = host(url);
        let proxy =
            self.agent.config().proxy().filter(|proxy| !url.as_str().parse().is_ok_and(|uri| proxy.is_no_proxy(&uri)));
        proxy.map_or_else(|| host.clone(), |proxy| format!("{host} by the proxy {}:{}", proxy.host(), proxy.port()))
    }

    fn ask(&self, url: &Url, headers: &[(&str, &str)]) -> Result<Response<Body>, Error> {
        let request = self.agent.get(url.as_str());
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let key = self.key.as_ref().filter(|key| key.origin == url.origin());
        key.into_iter().fold(request, |request, key| request.header(header::AUTHORIZATION, &key.authorization)).call()
    }
}

fn strip(url: &mut Url) {
    // Both fail only for addresses without a host, which have neither.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
}

fn redirect(from: &Url, response: &Response<Body>) -> Result<Option<Url>, Failure> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
    match to.and_then(|to| from.join(to).ok()).filter(is_web) {
        Some(to) => Ok(Some(to)),
        None => Err(Failure::Lasting(format!("{} redirects to no usable address", host(from)))),
    }
}

/// Whether it is an address that [`Web::get`] can ask.
pub(crate) fn is_web(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https") && url.has_host()
}

/// The part of an address that people know.
pub(crate) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn refused(url: &Url, status: StatusCode) -> Option<Failure> {
    let host = host(url);
    Some(match status.as_u16() {
        200 | 206 | 416 => return None,
        401 | 403 | 407 => Failure::Lasting(format!(
            "{host} refuses ({status}): a password goes into the index's address, as user:password@"
        )),
        404 | 410 => Failure::Lasting(format!("{host} does not have {}", url.path())),
        408 | 425 | 429 | 500..=599 => Failure::Passing(format!("{host} is not well ({status})")),
        _ => Failure::Lasting(format!("{host} answers {status}")),
    })
}

fn failure(peer: &str, error: Error) -> Failure {
    match error {
        Error::HostNotFound => Failure::Passing(format!("the name of {peer} is not known")),
        Error::Timeout(_) => Failure::Passing(format!("{peer} does not answer")),
        // What a handshake finds wrong comes as an error of the data.
        Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => distrust(peer, &error),
        Error::Rustls(error) => distrust(peer, &error),
        Error::Io(error) => Failure::Passing(format!("{peer}: {error}")),
        error @ (Error::ConnectionFailed | Error::Protocol(_) | Error::BodyStalled | Error::ConnectProxyFailed(_)) => {
            Failure::Passing(format!("{peer}: {error}"))
        }
        error => Failure::Lasting(format!("{peer}: {error}")),
    }
}

fn distrust(peer: &str, error: &dyn std::error::Error) -> Failure {
    Failure::Lasting(format!(
        "{peer} is not trusted: {error}; if a proxy or mirror has its own certificate, name the file of its authority by SSL_CERT_FILE"
    ))
}

/// What broke a transfer that had begun.
pub(crate) fn broken(error: &io::Error) -> Failure {
    Failure::Passing(match error.kind() {
        io::ErrorKind::TimedOut => "nothing more came".to_owned(),
        _ => format!("the transfer broke off ({error})"),
    })
}

/// The certificates of this machine, SSL_CERT_FILE and SSL_CERT_DIR before all; in a container without any, those that
/// are built in.
fn trusted() -> Result<RootCerts> {
    let found = rustls_native_certs::load_native_certs();
    if !found.certs.is_empty() {
        let certificates = found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned());
        return Ok(RootCerts::Specific(Arc::new(certificates.collect())));
    }
    match found.errors.first() {
        Some(error) => bail!("no certificate can be read: {error}; see SSL_CERT_FILE and SSL_CERT_DIR"),
        None => Ok(RootCerts::WebPki),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::{Answer, Stage};

    const ONCE: Patience = Patience { tries: 1, pause: Duration::ZERO, silence: Duration::from_secs(60) };

    fn text(reply: Reply) -> String {
        reply.response.into_body().read_to_string().unwrap()
    }

    #[test]
    fn a_password_is_heard_by_its_origin_alone_however_one_is_led() {
        let other = Stage::open(|_| Answer::text("elsewhere"));
        let away = other.url("/file");
        let own = Stage::open(move |asked| match asked.path.as_str() {
            "/near" => Answer::redirect("/here"),
            "/far" => Answer::redirect(away.as_str()),
            _ => Answer::text("here"),
        });
        let mut web = Web::of_a_test(ONCE);
        let mut index = own.url("/simple");
        index.set_username("a%40b").unwrap();
        index.set_password(Some("c:d")).unwrap();
        web.keep_key_of(&mut index);
        assert_eq!(index, own.url("/simple"), "nothing prints it by accident");
        assert_eq!(text(web.get(&own.url("/near"), &[]).unwrap()), "here");
        let far = web.get(&own.url("/far"), &[]).unwrap();
        assert_eq!(far.url, other.url("/file"));
        assert_eq!(text(far), "elsewhere");
        let keys = |stage: &Stage| stage.asked().iter().map(|asked| asked.header("authorization")).collect::<Vec<_>>();
        // a@b:c:d
        assert_eq!(keys(&own), vec![Some("Basic YUBiOmM6ZA==".to_owned()); 3]);
        assert_eq!(keys(&other), [None], "same host, another port");
    }

    #[test]
    fn what_may_pass_is_told_from_what_lasts() {
        let stage = Stage::open(|asked| match asked.path.as_str() {
            "/503" => Answer::status("503 Service Unavailable"),
            "/404" => Answer::status("404 Not Found"),
            "/401" => Answer::status("401 Unauthorized"),
            "/ftp" => Answer::redirect("ftp://127.0.0.1/file"),
            _ => Answer::redirect("/circle"),
        });
        let web = Web::of_a_test(ONCE);
        let get = |path: &str| web.get(&stage.url(path), &[]).err().unwrap();
        assert!(matches!(get("/503"), Failure::Passing(_)));
        for path in ["/404", "/401", "/ftp", "/circle"] {
            assert!(matches!(get(path), Failure::Lasting(_)), "{path}");
        }
        let nobody = Url::parse("http://127.0.0.1:1/").unwrap();
        assert!(matches!(web.get(&nobody, &[]).err().unwrap(), Failure::Passing(_)));
    }
}
