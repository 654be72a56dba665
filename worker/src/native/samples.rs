//! Inputs that every build has, to measure a model with.

use std::path::Path;

use engine::encode::{Clip, Input, Loaded, Picturing, Pixels, Words};
use engine::tensors::Tensors;
use engine::text::{Encoded, Excess};
use media::picture::{self, Picture};
use media::sound;

use super::encode::framing;
use crate::error::Error;

/// Of several lengths, subjects and languages.
const TEXTS: [&str; 12] = [
    "tea",
    "A cat sits on the mat.",
    "The central bank raised its rates by a quarter of a point.",
    "How do I reset the password of my account?",
    "Der Zug nach Wien fährt um sieben Uhr von Gleis drei.",
    "La pluie tombe depuis hier sur les toits de la ville.",
    "fn main() { println!(\"{}\", (1..=10).sum::<u32>()); }",
    "Water boils at 100 degrees at sea level, and at less on a mountain.",
    "Order 4711, two pairs of shoes in size 42, arrived damaged; please send a replacement or refund 89.90 EUR.",
    "She had not expected the letter, and so she read it twice before she understood that the house was hers.",
    "Photosynthesis turns carbon dioxide and water into sugar and oxygen; it takes its energy from light, and it is \
     where nearly all that we eat comes from in the end.",
    "A queue keeps what arrives faster than it is worked off. It makes nothing faster: if more comes than goes for long, \
     it only grows, so it needs a limit, and who is turned away has to hear of it at once and be told when to come back.",
];
/// A cup of coffee on a table.
const PHOTOGRAPH: &[u8] = include_bytes!("../../../ops/examples/coffee.jpg");
/// A sentence that is read aloud.
const SENTENCE: &[u8] = include_bytes!("../../../ops/examples/sentence.flac");
/// Why these can be read.
const OWN: &str = "a file of our own is read";

/// What the model at `path` reads of them.
///
/// # Errors
/// When the file does not say how it wants its pictures, or has no tokens for our texts.
pub(super) fn samples(path: &Path, loaded: &Loaded) -> Result<Vec<Input>, Error> {
    let mut samples = Vec::new();
    if let Some(encoder) = &loaded.tokens {
        let limit = loaded.info.context.unwrap_or(usize::MAX);
        for text in TEXTS {
            if let Encoded::Whole(tokens) | Encoded::Cut(tokens) = encoder.encode(text, limit, Excess::Cut)? {
                samples.push(Input::Tokens(tokens));
            }
        }
    }
    match loaded.info.family.as_str() {
        "efficientnet" | "clip" => samples.extend(pictures(&Picturing::read(Tensors::open(path)?.as_ref())?)),
        "whisper" => samples.push(speech()),
        _ => {}
    }
    Ok(samples)
}

fn pictures(picturing: &Picturing) -> impl Iterator<Item = Input> {
    let framing = framing(picturing);
    let side = picturing.size as usize;
    let photograph = picture::decode(PHOTOGRAPH, &picture::Limits::default()).expect(OWN);
    let pixels = move |view: Picture| Pixels { height: side, width: side, numbers: view.framed(&framing) };
    views(&photograph).into_iter().map(move |view| Input::Pixels(pixels(view)))
}

/// The picture and its quarters, and the mirror images of these.
fn views(picture: &Picture) -> Vec<Picture> {
    let (width, height) = (picture.width / 2, picture.height / 2);
    let corners = [(0, 0), (width, 0), (0, height), (width, height)];
    let mut views = vec![picture.clone()];
    views.extend(corners.map(|corner| part(picture, corner, (width, height))));
    let mirrored: Vec<Picture> = views.iter().map(mirrored).collect();
    views.extend(mirrored);
    views
}

fn part(picture: &Picture, (left, top): (u32, u32), (width, height): (u32, u32)) -> Picture {
    let (stride, first) = (picture.width as usize * 3, left as usize * 3);
    let rows = picture.rgb.chunks_exact(stride).skip(top as usize).take(height as usize);
    Picture { width, height, rgb: rows.flat_map(|row| &row[first..first + width as usize * 3]).copied().collect() }
}

fn mirrored(picture: &Picture) -> Picture {
    let rows = picture.rgb.chunks_exact(picture.width as usize * 3);
    let turned = rows.flat_map(|row| row.chunks_exact(3).rev().flatten());
    Picture { rgb: turned.copied().collect(), ..*picture }
}

fn speech() -> Input {
    let sound = sound::decode(SENTENCE, &sound::Limits::default()).expect(OWN);
    Input::Clip(Clip { samples: sound.samples, language: None, words: Words::Untimed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_the_whole_its_quarters_and_their_mirror_images() {
        let rgb = (0..12).flat_map(|pixel| [pixel; 3]).collect();
        let picture = Picture { width: 4, height: 3, rgb };
        let views = views(&picture);
        let pixels = |view: &Picture| view.rgb.iter().step_by(3).copied().collect::<Vec<u8>>();
        assert_eq!(views.len(), 10);
        assert_eq!(views[0], picture);
        assert_eq!((views[4].width, views[4].height, pixels(&views[4])), (2, 1, vec![6, 7]));
        assert_eq!(pixels(&views[9]), [7, 6]);
        assert_eq!(pixels(&views[5])[..4], [3, 2, 1, 0]);
        assert!(views.iter().all(|view| view.rgb.len() as u32 == view.width * view.height * 3));
    }

    #[test]
    fn our_own_files_are_read() {
        let Input::Clip(clip) = speech() else { panic!("it is a clip") };
        assert!(clip.samples.len() > 16_000);
        let picturing =
            serde_json::from_str(r#"{"size":8,"resize":9,"filter":"bicubic","mean":[0,0,0],"std":[1,1,1]}"#);
        assert_eq!(pictures(&picturing.unwrap()).count(), 10);
    }
}
