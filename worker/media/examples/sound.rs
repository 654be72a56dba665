//! Decodes sounds: prints how long each is and how long it took, and writes its samples, raw, to FILE.raw when asked to:
//! `sound [--write] FILE...`.

use std::time::Instant;

use media::sound::{Limits, decode};

fn main() {
    let mut files: Vec<String> = std::env::args().skip(1).collect();
    let write = files.first().is_some_and(|first| first == "--write");
    for file in files.drain(usize::from(write)..) {
        let bytes = std::fs::read(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        let started = Instant::now();
        match decode(&bytes, &Limits::default()) {
            Ok(sound) => {
                println!("{file}: {:.3} s of sound in {:.3} s", sound.seconds(), started.elapsed().as_secs_f64());
                if write {
                    let raw: Vec<u8> = sound.samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
                    std::fs::write(format!("{file}.raw"), raw).expect("a place to write to");
                }
            }
            Err(error) => println!("{file}: {error}"),
        }
    }
    println!("memory at its peak: {} MiB", peak_mib().unwrap_or(0));
}

fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? >> 10)
}
