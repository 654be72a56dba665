//! What the kernels' machine code is made of, and for which GPUs. The engine's build script includes this file: it stands
//! alone.

use std::collections::BTreeMap;
use std::fmt;

/// Texts by their names: `rows.cu`, `device.cuh`.
pub type Files = BTreeMap<String, String>;

/// The NVRTC that a build is compiled by: later ones write code that drivers of this version refuse.
pub const NVRTC: (u32, u32, u32) = (13, 0, 88);

/// What every source is compiled with, besides its target. Headers hold more than each source calls (177).
pub const OPTIONS: [&str; 2] = ["--std=c++17", "--diag-suppress=177"];

/// What a build is compiled for: all that is common from Ampere to Hopper, and a text that drivers translate for the rest.
pub const TARGETS: [Target; 5] = [
    Target::Machine((8, 0)),
    Target::Machine((8, 6)),
    Target::Machine((8, 9)),
    Target::Machine((9, 0)),
    Target::Portable((8, 0)),
];

/// What a source is compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Machine code for this compute capability, and later ones of the same major number.
    Machine((u32, u32)),
    /// PTX for this compute capability and all later ones.
    Portable((u32, u32)),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Machine((major, minor)) => write!(f, "sm_{major}{minor}"),
            Target::Portable((major, minor)) => write!(f, "compute_{major}{minor}"),
        }
    }
}

impl Target {
    /// Name of the file that holds a source compiled to it; `rows` is that of `rows.cu`.
    #[must_use]
    pub fn file(self, stem: &str) -> String {
        match self {
            Target::Machine(_) => format!("{stem}.{self}.cubin"),
            Target::Portable(_) => format!("{stem}.ptx"),
        }
    }
}

/// Name of the file beside compiled kernels that says what they were compiled from.
pub const MADE_OF: &str = "sources";

/// Whether a file of this name is one that kernels are compiled from.
#[must_use]
pub fn is_source(name: &str) -> bool {
    name.ends_with(".cu") || name.ends_with(".cuh")
}

/// All that decides what comes out, as one text: two are equal when the kernels are.
#[must_use]
pub fn made_of(files: &Files) -> String {
    let (major, minor, patch) = NVRTC;
    let mut text = format!("NVRTC {major}.{minor}.{patch} {}\n", OPTIONS.join(" "));
    for target in TARGETS {
        text += &format!("{target}\n");
    }
    for (name, content) in files {
        text += &format!("== {name}\n{content}");
    }
    text
}
