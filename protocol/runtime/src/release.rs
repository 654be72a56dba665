//! Which build this is.

use std::sync::LazyLock;

/// What the build says of itself; an image's build sets it to the commit.
const REVISION: Option<&str> = option_env!("FLOTILLA_REVISION");

/// Version of every program of this workspace, with the revision where the build knows it: `0.1.0 (1a2b3c4)`.
pub static RELEASE: LazyLock<String> = LazyLock::new(|| release(env!("CARGO_PKG_VERSION"), REVISION));

fn release(version: &str, revision: Option<&str>) -> String {
    match revision {
        // A build argument that nobody set arrives empty.
        None | Some("") => version.to_owned(),
        Some(revision) => format!("{version} ({revision})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_is_said_where_it_is_known() {
        assert_eq!(release("0.1.0", Some("1a2b3c4")), "0.1.0 (1a2b3c4)");
        assert_eq!(release("0.1.0", None), "0.1.0");
        assert_eq!(release("0.1.0", Some("")), "0.1.0");
    }
}
