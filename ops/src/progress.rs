//! How far a transfer is: a bar on a terminal, a line now and then where a log is kept.

use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a line is said.
const SAY: Duration = Duration::from_secs(3);
/// How often the bar moves though nothing comes.
const TICK: Duration = Duration::from_millis(200);

/// Of one transfer.
pub(crate) struct Progress {
    what: String,
    bar: ProgressBar,
    said: Instant,
}

impl Progress {
    /// Nothing is shown yet.
    pub(crate) fn of(what: String) -> Progress {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(style("  {spinner} {msg} {bytes} {bytes_per_sec}"));
        bar.set_message(what.clone());
        Progress { what, bar, said: Instant::now() }
    }

    /// A transfer begins, or goes on after a pause.
    pub(crate) fn begin(&mut self, from: &str, bytes: u64, total: Option<u64>) {
        if let Some(total) = total {
            self.bar.set_style(style("  {msg} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec}, {eta}"));
            self.bar.set_length(total);
        }
        self.bar.set_position(bytes);
        self.bar.enable_steady_tick(TICK);
        if self.bar.is_hidden() {
            self.say(&beginning(from, bytes, total));
        }
    }

    /// So much is here.
    pub(crate) fn at(&mut self, bytes: u64, total: Option<u64>) {
        self.bar.set_position(bytes);
        if self.bar.is_hidden() && self.said.elapsed() > SAY {
            self.say(&state(bytes, total));
        }
    }

    /// Something that a person should know.
    pub(crate) fn say(&mut self, remark: &str) {
        self.bar.suspend(|| eprintln!("  fetching {}: {remark}", self.what));
        self.said = Instant::now();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a fixed template").progress_chars("=> ")
}

fn beginning(from: &str, bytes: u64, total: Option<u64>) -> String {
    match (bytes, total) {
        (0, Some(total)) => format!("{} from {from}", HumanBytes(total)),
        (0, None) => format!("from {from}"),
        _ => format!("going on at {} from {from}", state(bytes, total)),
    }
}

fn state(bytes: u64, total: Option<u64>) -> String {
    match total {
        Some(total) => {
            let percent = u128::from(bytes) * 100 / u128::from(total.max(1));
            format!("{} of {}, {percent} %", HumanBytes(bytes), HumanBytes(total))
        }
        None => HumanBytes(bytes).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_bytes_total_and_percent() {
        assert_eq!(beginning("pypi.org", 0, Some(200 << 20)), "200.00 MiB from pypi.org");
        assert_eq!(
            beginning("pypi.org", 50 << 20, Some(200 << 20)),
            "going on at 50.00 MiB of 200.00 MiB, 25 % from pypi.org"
        );
        assert_eq!(state(50 << 20, Some(200 << 20)), "50.00 MiB of 200.00 MiB, 25 %");
        assert_eq!(state(0, Some(0)), "0 B of 0 B, 0 %");
        assert_eq!(state(1024, None), "1.00 KiB");
    }
}
