//! What kernels use of a GPU, as the compiler tells, and what they may use.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use anyhow::{Context as _, Result, bail};
use regex::Regex;

use crate::table::table;

/// Heads of the columns.
const HEAD: [&str; 4] = ["kernel", "registers", "local", "shared"];

/// Usages by the kernels' names.
pub(crate) type Usages = BTreeMap<String, Usage>;

/// What one kernel uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Registers of a thread.
    pub(crate) registers: u32,
    /// Bytes of a thread that lie in memory: what had no register, and arrays that are indexed.
    pub(crate) local: u32,
    /// Bytes of a block's shared memory that it declares itself.
    pub(crate) shared: u32,
}

impl Usage {
    /// The greater of each.
    pub(crate) fn most(self, other: Usage) -> Usage {
        let [registers, local, shared] = [0, 1, 2].map(|number| self.numbers()[number].max(other.numbers()[number]));
        Usage { registers, local, shared }
    }

    fn numbers(self) -> [u32; 3] {
        [self.registers, self.local, self.shared]
    }
}

/// What `-Xptxas -v` made the compiler say.
pub(crate) fn parse(log: &str) -> Result<Usages> {
    static LINE: LazyLock<Regex> = LazyLock::new(|| {
        let kernel = r"Compiling entry function '(?<kernel>[^']+)'";
        let stack =
            r"(?<stack>\d+) bytes stack frame, (?<stores>\d+) bytes spill stores, (?<loads>\d+) bytes spill loads";
        let used = r"Used (?<registers>\d+) registers(?:.*?, (?<shared>\d+) bytes smem)?";
        Regex::new(&format!("{kernel}|{stack}|{used}")).expect("a fixed expression")
    });
    let mut usages = Usages::new();
    let mut kernel = None;
    for line in LINE.captures_iter(log) {
        let number = |name: &str| line.name(name).map_or(Ok(0), |number| number.as_str().parse::<u32>());
        if let Some(name) = line.name("kernel") {
            kernel = Some(name.as_str().to_owned());
            continue;
        }
        // What stands before the first kernel is of functions that were not inlined.
        let Some(kernel) = &kernel else { continue };
        let local = number("stack")?.max(number("stores")?).max(number("loads")?);
        let usage = Usage { registers: number("registers")?, local, shared: number("shared")? };
        let before = usages.entry(kernel.clone()).or_default();
        *before = before.most(usage);
    }
    if let Some((kernel, _)) = usages.iter().find(|(_, usage)| usage.registers == 0) {
        bail!("the compiler does not tell what {kernel} uses: {log}");
    }
    Ok(usages)
}

/// The lines of a budget: a name and three numbers each.
pub(crate) fn read(text: &str) -> Result<Usages> {
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let parsed = lines.map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kernel, numbers @ ..] = words.as_slice() else { bail!("an empty line") };
        let numbers: Vec<u32> = numbers.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
        let &[registers, local, shared] = numbers.as_slice() else { bail!("not three numbers") };
        Ok(((*kernel).to_owned(), Usage { registers, local, shared }))
    });
    let numbered =
        parsed.enumerate().map(|(number, parsed)| parsed.with_context(|| format!("budget, kernel {number}")));
    numbered.collect()
}

/// A budget that leaves nothing over.
pub(crate) fn written(usages: &Usages) -> String {
    let lines = usages.iter().map(|(kernel, usage)| {
        let [registers, local, shared] = usage.numbers();
        format!("{kernel} {registers} {local} {shared}\n")
    });
    let lines: String = lines.collect();
    format!(
        "# What each kernel may use at most on any GPU: {}.\n# `flotilla kernels build --update` writes this.\n{lines}",
        HEAD[1..].join(", ")
    )
}

/// For people.
pub(crate) fn shown(usages: &Usages) -> String {
    let row = |(kernel, usage): (&String, &Usage)| {
        std::iter::once(kernel.clone()).chain(usage.numbers().map(|number| number.to_string())).collect()
    };
    table(&HEAD, &usages.iter().map(row).collect::<Vec<_>>())
}

/// What is over its budget, not in it, or in it for nothing.
pub(crate) fn over(usages: &Usages, budget: &Usages) -> Vec<String> {
    let mut faults = Vec::new();
    for (kernel, usage) in usages {
        let Some(allowed) = budget.get(kernel) else {
            faults.push(format!("{kernel} is not in it"));
            continue;
        };
        for ((what, used), allowed) in HEAD[1..].iter().zip(usage.numbers()).zip(allowed.numbers()) {
            if used > allowed {
                faults.push(format!("{kernel}: {used} {what}, of {allowed}"));
            }
        }
    }
    let gone = budget.keys().filter(|kernel| !usages.contains_key(*kernel));
    faults.extend(gone.map(|kernel| format!("{kernel} is in it, and in no source")));
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'layer_norm' for 'sm_90'
ptxas info    : Function properties for layer_norm
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 91 registers, used 1 barriers, 128 bytes smem
ptxas info    : Compile time = 125.140 ms
ptxas info    : Compiling entry function 'gather' for 'sm_90'
ptxas info    : Function properties for gather
ptxas         .     16 bytes stack frame, 24 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers
";

    fn usage(registers: u32, local: u32, shared: u32) -> Usage {
        Usage { registers, local, shared }
    }

    #[test]
    fn what_the_compiler_tells_is_understood() {
        let usages = parse(LOG).unwrap();
        assert_eq!(usages["layer_norm"], usage(91, 0, 128));
        assert_eq!(usages["gather"], usage(24, 24, 0));
        assert!(parse("ptxas info    : 0 bytes gmem").unwrap().is_empty());
    }

    #[test]
    fn a_budget_says_again_what_was_written() {
        let usages = parse(LOG).unwrap();
        assert_eq!(read(&written(&usages)).unwrap(), usages);
        assert!(over(&usages, &usages).is_empty());
        for wrong in ["gather 24 0", "gather 24 0 x", "gather 1 2 3 4"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_over_missing_or_left_over_is_named() {
        let usages = parse(LOG).unwrap();
        let budget = Usages::from([("gather".into(), usage(23, 24, 0)), ("gone".into(), usage(1, 0, 0))]);
        let faults = over(&usages, &budget);
        assert_eq!(
            faults,
            ["gather: 24 registers, of 23", "layer_norm is not in it", "gone is in it, and in no source"]
        );
    }
}
