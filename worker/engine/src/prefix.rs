//! What a full block of the key-value cache holds: its tokens, and by a chain of hashes all that stood before them.
//!
//! Keys and values of a token depend on every token before it, so a block can be shared where the whole chain is the
//! same, and nowhere else.

use crate::plan::{BLOCK_TOKENS, TokenId};

/// Whose prefixes these are: sequences share blocks within a scope only, so that nobody learns from the time of an
/// answer what others asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope([u8; 16]);

impl Scope {
    /// The scope of this name.
    #[must_use]
    pub fn of(name: &[u8]) -> Scope {
        Scope(short(blake3::hash(name)))
    }
}

/// Which full blocks are kept for sequences that begin the same way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kept {
    /// All.
    #[default]
    All,
    /// Those of tokens that a sequence came with: a device may compute what was sampled otherwise, and what a prompt leaves
    /// in the cache must not depend on who asked before.
    Prompts,
}

impl Kept {
    /// How many of a sequence's first `tokens`, when it came with `prompt`, others may have or have left.
    #[must_use]
    pub fn of(self, tokens: usize, prompt: usize) -> usize {
        match self {
            Kept::All => tokens,
            Kept::Prompts => tokens.min(prompt),
        }
    }
}

/// The hash of a scope and of all tokens up to the end of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Chain([u8; 16]);

impl Chain {
    /// The chain after no block.
    #[must_use]
    pub fn begin(scope: Scope) -> Chain {
        Chain(scope.0)
    }

    /// The chain after one more block.
    #[must_use]
    pub fn then(self, tokens: &[TokenId; BLOCK_TOKENS]) -> Chain {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Chain(short(hasher.finalize()))
    }
}

/// The first 128 bits.
fn short(hash: blake3::Hash) -> [u8; 16] {
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// What a full block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// The chain up to its end.
    pub chain: Chain,
    /// Its own tokens, compared where a chain is found: a hash alone decides nothing.
    pub tokens: [TokenId; BLOCK_TOKENS],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_its_scope_and_all_its_tokens_in_order() {
        let (a, b) = ([1; BLOCK_TOKENS], [2; BLOCK_TOKENS]);
        let begin = Chain::begin(Scope::of(b"one"));
        assert_eq!(begin.then(&a).then(&b), begin.then(&a).then(&b));
        let others =
            [begin.then(&a), begin.then(&b).then(&a), begin.then(&b), Chain::begin(Scope::of(b"two")).then(&a)];
        assert!(others.iter().all(|other| *other != begin.then(&a).then(&b)));
        assert_ne!(others[0], others[3]);
    }
}
