//! Classifies pictures, or times it: `classify MODEL FILE...` prints all probabilities of each file as a line of JSON;
//! a FILE that ends in `.f32` holds the numbers of a preprocessed picture. `classify MODEL --bench BATCH SECONDS THREADS`.

use std::path::Path;
use std::time::Instant;

use engine::backend::cpu::Cpu;
use engine::encode::{Encoder, Input, InputKey, Output, Picturing, Pixels, Resizing, Settings, Turn, processor};
use engine::model::EfficientNet;
use engine::simd::Level;
use engine::tensors::Tensors;
use media::picture::{Filter, Framing, Limits, decode};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, files @ ..] = arguments.as_slice() else { panic!("classify MODEL FILE...") };
    let threads = if files[0] == "--bench" { files[3].parse().expect("a number of threads") } else { 2 };
    let tensors = Tensors::open(Path::new(model)).expect("a model file");
    let settings = match std::env::var("FLOTILLA_BENCH_WEIGHTS").as_deref() {
        Ok("int8") => Settings::int8(threads),
        _ => Settings::stored(threads),
    };
    let cpu = processor(&tensors, settings, Level::detect()).expect("a family");
    let mut network = EfficientNet::load(&tensors, cpu).expect("a model of pictures");
    if files[0] == "--bench" {
        return bench(&mut network, files[1].parse().expect("pictures"), files[2].parse().expect("seconds"));
    }
    let picturing = *network.picturing();
    for file in files {
        let input = input(file, &picturing);
        match run(&mut network, &[input]).remove(0) {
            Turn::Done(Output::Classes(classes)) => println!("{classes:?}"),
            other => panic!("{file}: {other:?}"),
        }
    }
}

fn run(network: &mut EfficientNet<Cpu>, inputs: &[Input]) -> Vec<Turn> {
    let batch: Vec<(InputKey, &Input)> = inputs.iter().map(|input| (InputKey(0), input)).collect();
    let mut turns = Vec::new();
    network.encode(&batch, &mut turns).expect("the processor does not fail");
    turns
}

fn input(file: &str, picturing: &Picturing) -> Input {
    let bytes = std::fs::read(file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let side = picturing.size as usize;
    let numbers = if file.ends_with(".f32") {
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
    } else {
        let filter = match picturing.filter {
            Resizing::Bilinear => Filter::Bilinear,
            Resizing::Bicubic => Filter::Bicubic,
        };
        let framing = Framing {
            shorter: picturing.resize,
            crop: picturing.size,
            filter,
            mean: picturing.mean,
            deviation: picturing.std,
        };
        decode(&bytes, &Limits::default()).unwrap_or_else(|error| panic!("{file}: {error}")).framed(&framing)
    };
    Input::Pixels(Pixels { height: side, width: side, numbers })
}

/// Rounds of as many pictures for as many seconds, the median of five.
fn bench(network: &mut EfficientNet<Cpu>, batch: usize, seconds: f64) {
    let side = network.picturing().size as usize;
    let numbers = (0..side * side * 3).map(|at| (at % 255) as f32 / 127.5 - 1.0).collect();
    let inputs = vec![Input::Pixels(Pixels { height: side, width: side, numbers }); batch];
    run(network, &inputs);
    let mut rates: Vec<f64> = (0..5)
        .map(|_| {
            let (started, mut rounds) = (Instant::now(), 0);
            while started.elapsed().as_secs_f64() < seconds {
                run(network, &inputs);
                rounds += 1;
            }
            f64::from(rounds) * batch as f64 / started.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("{batch} at once: {:.1} pictures/s, {:.1} to {:.1}", rates[2], rates[0], rates[4]);
}
