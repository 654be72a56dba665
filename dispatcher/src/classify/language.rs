//! Language of a text, by its script and trigrams.

/// What is looked at: more text makes the guess no better and the request slower.
const TEXT_BYTES_MAX: usize = 512;
/// Below this the detector guesses: short texts and code come out as any language at up to 0.15.
const CONFIDENCE_MIN: f64 = 0.4;

/// The detector's ISO 639-3 codes and the ISO 639-1 codes that the contract speaks.
const CODES: [(&str, &str); 70] = [
    ("epo", "eo"),
    ("eng", "en"),
    ("rus", "ru"),
    ("cmn", "zh"),
    ("spa", "es"),
    ("por", "pt"),
    ("ita", "it"),
    ("ben", "bn"),
    ("fra", "fr"),
    ("deu", "de"),
    ("ukr", "uk"),
    ("kat", "ka"),
    ("ara", "ar"),
    ("hin", "hi"),
    ("jpn", "ja"),
    ("heb", "he"),
    ("yid", "yi"),
    ("pol", "pl"),
    ("amh", "am"),
    ("jav", "jv"),
    ("kor", "ko"),
    ("nob", "nb"),
    ("dan", "da"),
    ("swe", "sv"),
    ("fin", "fi"),
    ("tur", "tr"),
    ("nld", "nl"),
    ("hun", "hu"),
    ("ces", "cs"),
    ("ell", "el"),
    ("bul", "bg"),
    ("bel", "be"),
    ("mar", "mr"),
    ("kan", "kn"),
    ("ron", "ro"),
    ("slv", "sl"),
    ("hrv", "hr"),
    ("srp", "sr"),
    ("mkd", "mk"),
    ("lit", "lt"),
    ("lav", "lv"),
    ("est", "et"),
    ("tam", "ta"),
    ("vie", "vi"),
    ("urd", "ur"),
    ("tha", "th"),
    ("guj", "gu"),
    ("uzb", "uz"),
    ("pan", "pa"),
    ("aze", "az"),
    ("ind", "id"),
    ("tel", "te"),
    ("pes", "fa"),
    ("mal", "ml"),
    ("ori", "or"),
    ("mya", "my"),
    ("nep", "ne"),
    ("sin", "si"),
    ("khm", "km"),
    ("tuk", "tk"),
    ("aka", "ak"),
    ("zul", "zu"),
    ("sna", "sn"),
    ("afr", "af"),
    ("lat", "la"),
    ("slk", "sk"),
    ("cat", "ca"),
    ("tgl", "tl"),
    ("hye", "hy"),
    ("cym", "cy"),
];

/// ISO 639-1 code of a text, where the detector is sure of it.
pub(super) fn detect(text: &str) -> Option<&'static str> {
    let start = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
    let found = whatlang::detect(start).filter(|found| found.confidence() >= CONFIDENCE_MIN)?;
    CODES.iter().find(|(code, _)| *code == found.lang().code()).map(|&(_, code)| code)
}

/// Whether a rule may ask for this language.
#[must_use]
pub fn is_code(code: &str) -> bool {
    CODES.iter().any(|&(_, known)| known == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_of_the_detector_has_a_code() {
        for lang in whatlang::Lang::all() {
            assert!(CODES.iter().any(|(code, _)| *code == lang.code()), "{lang}");
        }
    }

    #[test]
    fn languages_are_told_apart() {
        assert_eq!(detect("Please tell me what the weather will be like tomorrow in the mountains."), Some("en"));
        assert_eq!(detect("Wie wird morgen das Wetter in den Bergen sein, und was soll ich anziehen?"), Some("de"));
        assert_eq!(detect("今天天气怎么样"), Some("zh"));
        assert_eq!(detect("What is NATS?"), None, "too short to tell");
        assert_eq!(detect("12345 67890"), None);
        assert_eq!(detect(&"\u{1F600}".repeat(1000)), None);
    }
}
