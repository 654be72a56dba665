//! The scripts, and the keys and arguments that all of them take.

use std::sync::Arc;

use protocol::token::{SessionId, Token};
use redis::{Script, ScriptInvocation, ToRedisArgs};

use super::Bounds;
use crate::clock;

/// Names the process of Redis that holds the sessions.
const MARK: &str = "sessions:held";
/// What the keys of a session end in.
const PARTS: [&str; 4] = ["meta", "open", "settled", "turns"];

/// Every script; cheap to clone.
#[derive(Clone)]
pub(super) struct Scripts(Arc<Inner>);

struct Inner {
    reserve: Script,
    confirm: Script,
    begin: Script,
    settle: Script,
    get: Script,
    forget: Script,
    void: Script,
    held: Script,
}

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("layout.lua"), include_str!($file)))
    };
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            reserve: script!("reserve.lua"),
            confirm: script!("confirm.lua"),
            begin: script!("begin.lua"),
            settle: script!("settle.lua"),
            get: script!("get.lua"),
            forget: script!("forget.lua"),
            void: script!("void.lua"),
            held: Script::new(include_str!("held.lua")),
        }))
    }

    pub(super) fn reserve(&self, bounds: &Bounds, tenant: &Token, session: &SessionId) -> ScriptInvocation<'_> {
        on(&self.0.reserve, bounds, tenant, session)
    }

    pub(super) fn confirm(&self, bounds: &Bounds, tenant: &Token, session: &SessionId) -> ScriptInvocation<'_> {
        on(&self.0.confirm, bounds, tenant, session)
    }

    pub(super) fn begin(&self, bounds: &Bounds, tenant: &Token, session: &SessionId) -> ScriptInvocation<'_> {
        on(&self.0.begin, bounds, tenant, session)
    }

    pub(super) fn settle(&self, bounds: &Bounds, tenant: &Token, session: &SessionId) -> ScriptInvocation<'_> {
        on(&self.0.settle, bounds, tenant, session)
    }

    pub(super) fn get(&self, bounds: &Bounds, tenant: &Token, session: &SessionId) -> ScriptInvocation<'_> {
        on(&self.0.get, bounds, tenant, session)
    }

    pub(super) fn forget(&self, bounds: &Bounds, tenant: &Token, session: &SessionId) -> ScriptInvocation<'_> {
        on(&self.0.forget, bounds, tenant, session)
    }

    /// `open`: the key of that name, as a search found it.
    pub(super) fn void(&self, bounds: &Bounds, open: &[u8]) -> ScriptInvocation<'_> {
        let stem = open.strip_suffix(b"open").unwrap_or(open);
        with(&self.0.void, bounds, PARTS.map(|part| [stem, part.as_bytes()].concat()))
    }

    /// `verb`: `look` or `set`.
    pub(super) fn held(&self, verb: &'static str) -> ScriptInvocation<'_> {
        let mut call = self.0.held.prepare_invoke();
        call.key(MARK).arg(verb);
        call
    }
}

/// The four keys of a session: one hash tag, so that they live together.
pub(super) fn keys(tenant: &Token, session: &SessionId) -> [String; 4] {
    let name = session.as_str();
    PARTS.map(|part| format!("session:{{{tenant}:{name}}}:{part}"))
}

fn on<'a>(script: &'a Script, bounds: &Bounds, tenant: &Token, session: &SessionId) -> ScriptInvocation<'a> {
    with(script, bounds, keys(tenant, session))
}

fn with<'a>(script: &'a Script, bounds: &Bounds, keys: [impl ToRedisArgs; 4]) -> ScriptInvocation<'a> {
    let mut call = script.prepare_invoke();
    for key in keys {
        call.key(key);
    }
    call.arg(clock::millis(bounds.ttl)).arg(clock::millis(bounds.hold));
    call.arg(bounds.open_max).arg(clock::millis(bounds.void_after));
    call
}
