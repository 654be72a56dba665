//! A web server for tests, which answers as it is told and remembers what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use url::Url;

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Without the host.
    pub(crate) path: String,
    head: Vec<String>,
}

impl Asked {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let values = self.head.iter().filter_map(|line| line.split_once(": "));
        values.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    }
}

/// How much of an answer's body is sent, and what then.
#[derive(Clone, Copy, Debug)]
enum End {
    Whole,
    CutAfter(usize),
    SilentAfter(usize),
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    status: String,
    headers: Vec<String>,
    body: Vec<u8>,
    end: End,
}

impl Answer {
    /// 200 with a body.
    pub(crate) fn bytes(body: &[u8]) -> Answer {
        Answer { status: "200 OK".to_owned(), headers: vec![], body: body.to_vec(), end: End::Whole }
    }

    /// 200 with a text.
    pub(crate) fn text(body: &str) -> Answer {
        Answer::bytes(body.as_bytes())
    }

    /// Another status, with nothing in it.
    pub(crate) fn status(status: &str) -> Answer {
        Answer { status: status.to_owned(), ..Answer::text("") }
    }

    /// To another address.
    pub(crate) fn redirect(to: &str) -> Answer {
        Answer::status("302 Found").with(&format!("Location: {to}"))
    }

    /// The end of a body, as a range that began at `from`.
    pub(crate) fn rest(whole: &[u8], from: usize) -> Answer {
        let range = format!("Content-Range: bytes {from}-{}/{}", whole.len() - 1, whole.len());
        Answer { status: "206 Partial Content".to_owned(), ..Answer::bytes(&whole[from..]) }.with(&range)
    }

    /// With a header.
    pub(crate) fn with(mut self, header: &str) -> Answer {
        self.headers.push(header.to_owned());
        self
    }

    /// The connection ends after so many bytes of the body.
    pub(crate) fn cut_after(self, bytes: usize) -> Answer {
        Answer { end: End::CutAfter(bytes), ..self }
    }

    /// Nothing comes after so many bytes of the body, until the client goes.
    pub(crate) fn silent_after(self, bytes: usize) -> Answer {
        Answer { end: End::SilentAfter(bytes), ..self }
    }

    fn send(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let Answer { status, headers, body, end } = self;
        let length = body.len();
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n")?;
        headers.iter().try_for_each(|header| write!(stream, "{header}\r\n"))?;
        write!(stream, "\r\n")?;
        match *end {
            End::Whole => stream.write_all(body),
            End::CutAfter(bytes) => stream.write_all(&body[..bytes]),
            End::SilentAfter(bytes) => {
                stream.write_all(&body[..bytes])?;
                stream.read(&mut [0]).map(drop)
            }
        }
    }
}

/// A server on a free port. Its thread ends with the tests.
pub(crate) struct Stage {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Stage {
    /// Serves one connection after the other.
    pub(crate) fn open(answer: impl Fn(&Asked) -> Answer + Send + 'static) -> Stage {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stage = Stage { address: listener.local_addr().unwrap(), asked: Arc::default() };
        let seen = Arc::clone(&stage.asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let lines = BufReader::new(&stream).lines().map_while(Result::ok);
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)).map(str::to_owned) else {
                    continue;
                };
                let asked = Asked { path, head };
                seen.lock().unwrap().push(asked.clone());
                // A client that went has seen enough.
                let _ = answer(&asked).send(&stream);
            }
        });
        stage
    }

    /// An address on it.
    pub(crate) fn url(&self, path: &str) -> Url {
        Url::parse(&format!("http://{}{path}", self.address)).unwrap()
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The paths of that.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.path).collect()
    }
}
