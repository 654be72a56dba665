use std::sync::Arc;

use half::bf16;

use super::super::Memory;
use super::super::sources::{SOURCES, source};
use super::*;
use crate::fixture::Noise;

/// Orders in which everything is tried.
const SEEDS: [u64; 4] = [0, 1, 2, 3];

/// A shim of the trial kernels; none where there is no compiler.
fn trial(seed: u64) -> Option<Arc<dyn Gpu>> {
    let options = Options { seed, ..Options::default() };
    let shim = Shim::for_tests(&[source!("shim/trial.cu")], options)?;
    Some(Arc::new(shim))
}

/// A launch of one block.
struct One<'a> {
    gpu: &'a Arc<dyn Gpu>,
    threads: u32,
    shared: u32,
}

impl One<'_> {
    fn launch(&self, name: &str, arguments: &[Argument]) -> Result<(), String> {
        let extent = Extent { grid: (1, 1, 1), threads: self.threads, shared: self.shared };
        let kernel = self.gpu.kernel(name).unwrap();
        self.gpu.launch(kernel, extent, arguments).map_err(|error| error.to_string())
    }

    /// What is wrong, of which these words are said.
    fn fails(&self, name: &str, arguments: &[Argument], words: &[&str]) {
        let said = self.launch(name, arguments).expect_err(name);
        assert!(words.iter().all(|word| said.contains(word)), "{name}: {said}, not {words:?}");
    }
}

fn one(gpu: &Arc<dyn Gpu>, threads: u32) -> One<'_> {
    One { gpu, threads, shared: 0 }
}

fn held(gpu: &Arc<dyn Gpu>, bytes: &[u8]) -> Memory {
    let memory = Memory::new(gpu, bytes.len()).unwrap();
    gpu.upload(bytes, memory.address()).unwrap();
    memory
}

fn floats(gpu: &Arc<dyn Gpu>, numbers: &[f32]) -> Memory {
    held(gpu, &numbers.iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<_>>())
}

fn halves(gpu: &Arc<dyn Gpu>, numbers: &[f32]) -> Memory {
    held(gpu, &numbers.iter().flat_map(|number| bf16::from_f32(*number).to_ne_bytes()).collect::<Vec<_>>())
}

fn words(gpu: &Arc<dyn Gpu>, memory: &Memory) -> Vec<u32> {
    let mut bytes = vec![0; memory.bytes()];
    gpu.download(memory.address(), &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect()
}

fn numbers(gpu: &Arc<dyn Gpu>, memory: &Memory) -> Vec<f32> {
    words(gpu, memory).into_iter().map(f32::from_bits).collect()
}

fn at(memory: &Memory) -> Argument {
    Argument::Pointer(memory.address())
}

fn int(number: i32) -> Argument {
    Argument::Int(number)
}

fn noise(count: usize) -> Vec<f32> {
    Noise(7).numbers(count).into_iter().map(|number| bf16::from_f32(number).to_f32()).collect()
}

/// Does this in every order.
fn each(test: impl Fn(&Arc<dyn Gpu>)) {
    SEEDS.into_iter().filter_map(trial).for_each(|gpu| test(&gpu));
}

#[test]
fn a_missing_barrier_shows() {
    each(|gpu| {
        let x = noise(256);
        let (from, to) = (floats(gpu, &x), Memory::new(gpu, 1024).unwrap());
        one(gpu, 256).launch("turn_round", &[at(&from), at(&to), int(1)]).unwrap();
        assert!(numbers(gpu, &to).iter().eq(x.iter().rev()));
        one(gpu, 256).launch("turn_round", &[at(&from), at(&to), int(0)]).unwrap();
        assert!(numbers(gpu, &to).iter().any(|number| number.is_nan()));
    });
}

#[test]
fn shared_memory_is_the_blocks_and_begins_as_nan() {
    each(|gpu| {
        let x = noise(256);
        let (from, to) = (floats(gpu, &x), Memory::new(gpu, 1024).unwrap());
        let block = One { shared: 1024, ..one(gpu, 256) };
        block.launch("turn_twice", &[at(&from), at(&to)]).unwrap();
        assert!(numbers(gpu, &to).into_iter().eq(x.iter().rev().map(|number| 6.0 * number)));
        let fresh = Memory::new(gpu, 4 * 2 * 32 * 4).unwrap();
        let extent = Extent { grid: (2, 1, 2), threads: 32, shared: 128 };
        gpu.launch(gpu.kernel("fresh").unwrap(), extent, &[at(&fresh)]).unwrap();
        let x = words(gpu, &fresh);
        assert!(x[..2 * 2 * 32].iter().all(|word| *word == u32::MAX));
    });
}

#[test]
fn threads_that_part_before_a_barrier_are_an_error() {
    each(|gpu| {
        let two = one(gpu, 64);
        two.launch("left_early", &[int(99)]).unwrap();
        two.fails("left_early", &[int(40)], &["trial.cu:", "__syncthreads", "thread 40 has ended"]);
        two.launch("two_barriers", &[int(64)]).unwrap();
        two.fails("two_barriers", &[int(20)], &["trial.cu:", "thread 0 waits", "thread 20 waits"]);
    });
}

#[test]
fn lanes_that_part_within_a_warp_are_an_error() {
    each(|gpu| {
        let (from, to) = (floats(gpu, &[1.0; 32]), floats(gpu, &[0.0; 32]));
        let warp = one(gpu, 32);
        let sum = |lanes, mask| [at(&from), at(&to), int(lanes), int(mask)];
        warp.launch("sum_lanes", &sum(16, 0xffff)).unwrap();
        assert_eq!(numbers(gpu, &to)[..17], [[16.0; 16].as_slice(), &[0.0]].concat());
        warp.fails("sum_lanes", &sum(16, -1), &["trial.cu:", "__shfl_xor_sync", "has ended"]);
        warp.fails("sum_lanes", &sum(16, 0xff), &["trial.cu:", "mask 000000ff"]);
        warp.launch("two_places", &[at(&to), int(32)]).unwrap();
        warp.fails("two_places", &[at(&to), int(16)], &["trial.cu:", "thread 0 waits", "thread 16 waits"]);
    });
}

#[test]
fn the_functions_of_a_warp_are_cudas() {
    each(|gpu| {
        let to = Memory::new(gpu, 32 * 8 * 4).unwrap();
        one(gpu, 32).launch("warp_words", &[at(&to)]).unwrap();
        for (lane, got) in (0_u32..).zip(words(gpu, &to).chunks_exact(8)) {
            let up = if lane < 2 { lane } else { lane - 2 };
            let down = if lane % 16 < 14 { lane + 2 } else { lane };
            let third = (0..32).filter(|bit| bit % 3 == 0).map(|bit| 1 << bit).sum();
            assert_eq!(got, [3, lane / 8 * 8 + 1, up, down, third, 5, 0_u32.wrapping_sub(5), 496]);
        }
    });
}

#[test]
fn a_copy_is_there_only_once_it_is_waited_for() {
    each(|gpu| {
        let x = noise(512);
        let from = floats(gpu, &x);
        for groups in 0..3 {
            let to = Memory::new(gpu, 2048).unwrap();
            one(gpu, 64).launch("copies", &[at(&from), at(&to), int(groups), int(32)]).unwrap();
            let got = numbers(gpu, &to);
            for (number, got) in got.into_iter().enumerate() {
                let (group, thread) = (number / 256, 63 - number % 256 / 4);
                let there = x[group * 256 + thread * 4 + number % 4];
                match (group < groups as usize, group == 0 && thread >= 32) {
                    (false, _) => assert!(got.is_nan()),
                    (true, true) => assert_eq!(got, 0.0),
                    (true, false) => assert_eq!(got, there),
                }
            }
        }
    });
}

#[test]
fn fragments_and_products_are_those_of_ptx() {
    each(|gpu| {
        let (a, b) = (noise(16 * 16), noise(8 * 16));
        let (left, right, to) = (halves(gpu, &a), halves(gpu, &b), Memory::new(gpu, 16 * 8 * 4).unwrap());
        for turned in 0..2 {
            one(gpu, 32).launch("product", &[at(&left), at(&right), at(&to), int(turned)]).unwrap();
            for (number, got) in numbers(gpu, &to).into_iter().enumerate() {
                let (row, column) = (&a[number / 8 * 16..][..16], &b[number % 8 * 16..][..16]);
                let wanted: f32 = row.iter().zip(column).map(|(a, b)| a * b).sum();
                assert!((got - wanted).abs() < 1e-5, "{number}: {got}, not {wanted}");
            }
        }
    });
}

#[test]
fn turned_matrices_are_those_of_ptx() {
    each(|gpu| {
        let x: Vec<u8> = (0..256_u16).flat_map(u16::to_ne_bytes).collect();
        let (from, to) = (held(gpu, &x), Memory::new(gpu, 4 * 32 * 4).unwrap());
        one(gpu, 32).launch("turn_matrices", &[at(&from), at(&to)]).unwrap();
        for (number, got) in (0_u32..).zip(words(gpu, &to)) {
            let (matrix, lane) = (number / 32, number % 32);
            let wanted = |row: u32| row * 32 + matrix * 8 + lane / 4;
            assert_eq!(got, wanted(lane % 4 * 2) | wanted(lane % 4 * 2 + 1) << 16);
        }
    });
}

#[test]
fn what_is_misaligned_is_an_error() {
    each(|gpu| {
        let (from, to) = (floats(gpu, &[0.0; 64]), Memory::new(gpu, 128).unwrap());
        for which in 0..5 {
            for aligned in [0, 4] {
                one(gpu, 32).launch("misaligned", &[at(&from), at(&to), int(which), int(aligned)]).unwrap();
            }
            one(gpu, 32).fails("misaligned", &[at(&from), at(&to), int(which), int(2)], &["trial.cu:", "misaligned"]);
        }
    });
}

#[test]
fn what_a_device_leaves_undefined_is_an_error_and_no_crash() {
    let wrong = [
        (0, 64, "byte 256 of an allocation of 256"),
        (0, 64 + 3 * 1024, "of an allocation of 256"),
        (0, -4000, "byte -16000 of an allocation of 256"),
        (1, 1, "null"),
        (2, 5, "out of bounds"),
        (3, 32, "shift"),
        (4, 101, "overflows"),
        (5, 1, "division by zero"),
        (6, 1_000_000, "reads or writes"),
        (7, 1, "reads or writes"),
    ];
    each(|gpu| {
        let x = held(gpu, &[0; 256]);
        let warp = One { shared: 128, ..one(gpu, 32) };
        for (which, number, words) in wrong {
            warp.fails("forbidden", &[at(&x), int(which), int(number)], &["trial.cu:", words]);
        }
        warp.launch("forbidden", &[at(&x), int(0), int(63)]).unwrap();
        let odd = held(gpu, &[0; 100]);
        warp.launch("forbidden", &[at(&odd), int(8), int(99)]).unwrap();
        warp.fails("forbidden", &[at(&odd), int(8), int(100)], &["bytes after an allocation of 100 were written"]);
    });
}

#[test]
fn a_kernel_that_waits_for_no_other_is_an_error() {
    each(|gpu| {
        let to = Memory::new(gpu, 128).unwrap();
        one(gpu, 32).fails("hasty", &[at(&to)], &["grid_wait"]);
    });
}

#[test]
fn what_a_device_would_not_launch_is_an_error() {
    let Some(gpu) = trial(0) else { return };
    let (kernel, x) = (gpu.kernel("turn_round").unwrap(), floats(&gpu, &[0.0; 256]));
    let (arguments, good) = ([at(&x), at(&x), int(1)], Extent { grid: (1, 1, 1), threads: 256, shared: 0 });
    gpu.launch(kernel, good, &arguments).unwrap();
    let wrong = [
        Extent { grid: (0, 1, 1), ..good },
        Extent { grid: (1, 65_536, 1), ..good },
        Extent { threads: 48, ..good },
        Extent { threads: 0, ..good },
        Extent { threads: 288, ..good },
        Extent { shared: 300_000, ..good },
    ];
    assert!(wrong.iter().all(|extent| gpu.launch(kernel, *extent, &arguments).is_err()));
    assert!(gpu.launch(kernel, good, &arguments[..2]).is_err());
    assert!(gpu.launch(kernel, good, &[at(&x), at(&x), Argument::Float(1.0)]).is_err());
    let nowhere = Argument::Pointer(x.address().plus(257 * 4));
    assert!(gpu.launch(kernel, good, &[nowhere, at(&x), int(1)]).is_err());
    assert!(gpu.kernel("turn").is_err());
}

#[test]
fn blocks_see_what_others_have_counted() {
    each(|gpu| {
        let (counter, to) = (held(gpu, &[0; 4]), Memory::new(gpu, 4).unwrap());
        let extent = Extent { grid: (3, 4, 5), threads: 64, shared: 0 };
        gpu.launch(gpu.kernel("last_counts").unwrap(), extent, &[at(&counter), at(&to)]).unwrap();
        assert_eq!((words(gpu, &counter), words(gpu, &to)), (vec![0], vec![60]));
    });
}

#[test]
fn what_is_recorded_runs_at_each_replay_and_not_before() {
    let Some(gpu) = trial(2) else { return };
    let (counter, to) = (held(&gpu, &[0; 4]), held(&gpu, &[0; 4]));
    let extent = Extent { grid: (7, 1, 1), threads: 64, shared: 0 };
    gpu.record().unwrap();
    gpu.launch(gpu.kernel("last_counts").unwrap(), extent, &[at(&counter), at(&to)]).unwrap();
    gpu.copy(to.address(), counter.address(), 4).unwrap();
    assert!(gpu.download(to.address(), &mut [0; 4]).is_err());
    assert!(gpu.wait().is_err());
    let graph = gpu.recorded().unwrap();
    assert_eq!((words(&gpu, &counter), words(&gpu, &to)), (vec![0], vec![0]));
    gpu.replay(graph).unwrap();
    assert_eq!((words(&gpu, &counter), words(&gpu, &to)), (vec![7], vec![7]));
    gpu.clear(counter.address(), 4).unwrap();
    gpu.clear(to.address(), 4).unwrap();
    gpu.replay(graph).unwrap();
    assert_eq!(words(&gpu, &to), [7]);
    assert!(gpu.replay(Graph(1)).is_err());
}

#[test]
fn memory_has_an_end_and_is_nan_at_first() {
    if trial(0).is_none() {
        return;
    }
    let options = Options { total: 10_000, ..Options::default() };
    let gpu: Arc<dyn Gpu> = Arc::new(Shim::of(&[source!("shim/trial.cu")], options).unwrap());
    let first = Memory::new(&gpu, 6000).unwrap();
    assert_eq!(first.address().0 % 256, 0);
    assert!(words(&gpu, &first).iter().all(|word| *word == u32::MAX));
    assert!(matches!(gpu.allocate(4001), Err(Error::OutOfMemory { bytes: 4001, free: 4000 })));
    assert_eq!(gpu.properties().unwrap().free, 4000);
    assert!(gpu.upload(&[0; 6001], first.address()).is_err());
    assert!(gpu.copy(first.address(), first.address().plus(10), 100).is_err());
    drop(first);
    assert_eq!(gpu.properties().unwrap().free, 10_000);
}

#[test]
fn all_kernels_are_built() {
    let Some(shim) = Shim::for_tests(SOURCES, Options::default()) else { return };
    assert_eq!(shim.numbers.len(), shim.kernels.len());
    for kernel in ["gather", "rms_norm", "gemm_any", "attend_plain", "argmax"] {
        shim.kernel(kernel).unwrap();
    }
}
