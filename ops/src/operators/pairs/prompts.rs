//! `prompts`: prompts with their references, for networks that draw.
//!
//! Shape letters: `B` batch, `R` references of each prompt of the batch.

use std::path::PathBuf;

use super::{
    Order,
    geometry::fitted,
    lines,
    picture::{self, MAX_PIXELS, Rgb},
    request::Request,
    row::{BadRow, Reference},
    settings::{is_possible, whole_cells},
};
use crate::{
    guard,
    identity::{ReadBatch, Sample},
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{ImageShape, Images, List, ListShape, Texts, TextsShape},
    resume::{DataSample, External},
    settings,
    settings::DataPath,
    shape::PortShape,
    words::count,
};

settings! {
    /// Settings of [`Prompts`].
    pub struct PromptsSettings {
        /// A file with a JSON object a line, or the folder that holds it as `pairs.jsonl`: `id`, `prompt` and `refs` as in preference pairs; `win` and `lose` may be missing and are not read.
        pub path: DataPath = DataPath::default(),
        /// One prompt, in place of `path`.
        pub prompt: Option<String> = None,
        /// The reference pictures of `prompt`.
        pub references: Vec<DataPath> = Vec::new(),
        /// Rows of pixels of a reference, a multiple of 16.
        pub reference_height: usize = 512,
        /// Columns of pixels of a reference, a multiple of 16.
        pub reference_width: usize = 512,
        /// Prompts in a batch.
        pub batch: usize = 1,
        /// Most pixels of a picture in a file; a larger one is refused, and no memory is asked for it.
        pub max_pixels: usize = MAX_PIXELS,
    }
}

/// The version of how files become pixels; raised when the same files give others.
const READING: u32 = 1;

/// Batches of prompts in the order of their file; those with equally many references share a batch.
pub struct Prompts {
    settings: PromptsSettings,
    requests: Vec<Request>,
    order: Order,
    /// What messages call the file; nothing where one prompt was stated.
    origin: Option<String>,
}

/// A prompt with its references, for [`Prompts::listed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its name in messages, and on the edge `ids`.
    pub id: String,
    /// What is to be drawn.
    pub prompt: String,
    /// Pictures of what is to be seen.
    pub references: Vec<PathBuf>,
}

impl PromptsSettings {
    fn check(&self) -> Result<(), OpError> {
        let refuse = |message: &str| Err(OpError::new(message));
        match (&self.prompt, self.path.is_empty()) {
            (None, true) => return refuse("path: a file of prompts is needed, or one `prompt`"),
            (Some(_), false) => return refuse("path and prompt: only one of them can be given"),
            (None, false) if !self.references.is_empty() => {
                return refuse("references: they belong to `prompt`; a file states its own");
            }
            _ => {}
        }
        self.check_sizes()
    }

    fn check_sizes(&self) -> Result<(), OpError> {
        let refuse = |message: &str| Err(OpError::new(message));
        if self.batch == 0 || self.max_pixels == 0 {
            return refuse("batch and max_pixels: at least 1 is needed");
        }
        whole_cells("reference_height", self.reference_height)?;
        whole_cells("reference_width", self.reference_width)?;
        match is_possible(self.batch, (self.reference_height, self.reference_width)) {
            true => Ok(()),
            false => refuse("a batch of references of this size is larger than any memory"),
        }
    }
}

impl Prompts {
    fn picture(&self, request: &Request, reference: usize) -> Result<Vec<u8>, OpError> {
        let path = &request.references[reference].image;
        let size = (self.settings.reference_height, self.settings.reference_width);
        let read = || Rgb::open(path, self.settings.max_pixels).map(|picture| fitted(picture, size));
        guard::reason(read).map_err(|reason| unusable(self.origin.as_deref(), request, reason))
    }

    /// Prompts that no file holds: `origin` is what messages call their list. Of the settings only sizes and the batch count.
    ///
    /// # Errors
    /// If there are none, a reference is no file, or a size is impossible.
    pub fn listed(settings: PromptsSettings, origin: &str, asked: Vec<Asked>) -> Result<Self, OpError> {
        settings.check_sizes()?;
        let request = |(number, asked): (usize, Asked)| {
            let stated = Request::stated(&asked.prompt, asked.references);
            Request { line: number + 1, id: asked.id, ..stated }
        };
        Self::of(settings, asked.into_iter().enumerate().map(request).collect(), Some(origin.to_owned()))
    }

    fn of(
        settings: PromptsSettings,
        requests: Vec<Request>,
        origin: Option<String>,
    ) -> Result<Self, OpError> {
        if requests.is_empty() {
            return Err(OpError::new(format!("{}: holds no prompts", origin.unwrap_or_default())));
        }
        for request in &requests {
            let fault = |r: &Reference| {
                Some(format!("{}: {}", r.image.display(), picture::file::regular(&r.image).err()?))
            };
            if let Some(reason) = request.references.iter().find_map(fault) {
                return Err(unusable(origin.as_deref(), request, reason));
            }
        }
        let order = Order::new(requests.iter().map(|r| r.references.len()), settings.batch, false);
        Ok(Self { requests, order, settings, origin })
    }
}

fn unusable(origin: Option<&str>, request: &Request, reason: String) -> OpError {
    match origin {
        None => OpError::new(reason),
        Some(origin) => {
            let bad = BadRow { line: request.line, id: request.id.clone(), reason };
            OpError::new(format!("{origin}, {bad}"))
        }
    }
}

impl Operator for Prompts {
    const NAME: &'static str = "prompts";
    const DOC: &'static str = "Read prompts and their reference pictures, to draw from: lines like those of preference \
                               pairs, but without winner and loser, or one prompt of the graph's own.";
    const IN: [&'static str; 0] = [];
    const OUT: [&'static str; 3] = ["references", "prompts", "ids"];
    type Settings = PromptsSettings;
    type In = ();
    type Out = (List<Images>, Texts, Texts);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: PromptsSettings) -> Result<Self, OpError> {
        settings.check()?;
        let requests = match &settings.prompt {
            Some(prompt) => {
                let references = settings.references.iter().map(|path| path.0.clone());
                vec![Request::stated(prompt, references)]
            }
            None => {
                let path = settings.path.as_path();
                let (requests, bad) = lines::read_requests(path).map_err(OpError::new)?;
                match &bad[..] {
                    [] => requests,
                    [first, ..] => {
                        let bad = count(bad.len(), "line");
                        return Err(OpError::new(format!(
                            "{}: {bad} that cannot be used; {first}",
                            path.display()
                        )));
                    }
                }
            }
        };
        let origin = settings.prompt.is_none().then(|| settings.path.as_path().display().to_string());
        let prompts = Self::of(settings, requests, origin)?;
        if let (Some(_), [request]) = (&prompts.settings.prompt, &prompts.requests[..]) {
            // A few pictures: whether they can be used is known before a large network is opened.
            (0..request.references.len()).try_for_each(|r| prompts.picture(request, r).map(drop))?;
        }
        Ok(prompts)
    }

    fn variants(&self) -> usize {
        self.order.groups().len()
    }

    fn shapes(&self, (): InShapes<Self>, variant: usize) -> Result<OutShapes<Self>, OpError> {
        let group = self.order.groups().get(variant);
        let group = group.ok_or_else(|| OpError::internal(format!("prompts have no variant {variant}")))?;
        let PromptsSettings { batch, reference_height: height, reference_width: width, .. } = self.settings;
        let image = ImageShape { batch, height, width };
        Ok((ListShape(vec![image; group.references]), TextsShape { batch }, TextsShape { batch }))
    }

    fn cost(&self, (): &InShapes<Self>, outputs: &OutShapes<Self>) -> Cost {
        let pixels = outputs.0.bytes() / 3;
        // Decoding and scaling, as `pairs` does.
        Cost { forward_flops: 100.0 * pixels as f64, moved_bytes: 12.0 * pixels as f64, ..Cost::default() }
    }

    fn notes(&self, (): &InShapes<Self>) -> Vec<String> {
        let batches = count(self.order.epoch(), "batch");
        vec![format!("{} in {batches} of {}", count(self.requests.len(), "prompt"), self.settings.batch)]
    }

    fn exports(&self) -> Vec<(String, serde_json::Value)> {
        vec![
            ("samples".into(), self.requests.len().into()),
            ("batches_per_epoch".into(), self.order.epoch().into()),
        ]
    }

    fn external(&self) -> Vec<External> {
        let sample = |request: &Request| DataSample {
            id: request.id.clone(),
            facts: format!("{:?}", request.prompt),
            files: request.references.iter().map(|r| r.image.clone()).collect(),
        };
        vec![External::samples("path", self.requests.iter().map(sample).collect())]
    }

    fn samples(&self) -> Option<Vec<Sample>> {
        let mut variants = vec![0; self.requests.len()];
        for (variant, group) in self.order.groups().iter().enumerate() {
            group.samples.iter().for_each(|sample| variants[*sample] = variant);
        }
        let size = (self.settings.reference_height, self.settings.reference_width);
        let requests = self.requests.iter().zip(variants);
        let sample = |(request, variant): (&Request, usize)| Sample {
            variant,
            facts: format!("{READING} {size:?} {:?}", request.prompt),
            files: request.references.iter().map(|r| r.image.clone()).collect(),
        };
        Some(requests.map(sample).collect())
    }

    fn read(&self, _: &Ctx<'_>, samples: &[usize]) -> Result<ReadBatch<Self::Out>, OpError> {
        let request =
            |i: &usize| self.requests.get(*i).ok_or_else(|| OpError::internal(format!("no prompt {i}")));
        let requests = samples.iter().map(request).collect::<Result<Vec<_>, _>>()?;
        Ok(Some((samples.to_vec(), self.outputs(&requests)?)))
    }

    fn forward(&self, ctx: &Ctx<'_>, (): Self::In) -> Result<(Self::Out, ()), OpError> {
        let batch = self.order.at(ctx.seed, ctx.node, ctx.step);
        let requests: Vec<&Request> = batch.samples.iter().map(|i| &self.requests[*i]).collect();
        Ok((self.outputs(&requests)?, ()))
    }
}

impl Prompts {
    /// A batch of requests, all with equally many references.
    fn outputs(&self, requests: &[&Request]) -> Result<<Self as Operator>::Out, OpError> {
        let PromptsSettings { reference_height: height, reference_width: width, .. } = self.settings;
        let references = (0..requests.first().map_or(0, |first| first.references.len())).map(|r| {
            let pictures = requests.iter().map(|request| self.picture(request, r));
            let rgb = pictures.collect::<Result<Vec<_>, _>>()?.concat();
            Ok::<_, OpError>(Images { batch: requests.len(), height, width, rgb: rgb.into() })
        });
        let texts =
            |of: &dyn Fn(&Request) -> &String| Texts(requests.iter().map(|r| of(r).clone()).collect());
        Ok((List(references.collect::<Result<_, _>>()?), texts(&|r| &r.prompt), texts(&|r| &r.id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::Bench;

    fn refused(settings: PromptsSettings) -> String {
        Prompts::new(settings).err().expect("a refusal").to_string()
    }

    #[test]
    fn rows_need_no_winner_and_batches_keep_the_order_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        image::RgbImage::from_pixel(40, 20, image::Rgb([9, 8, 7])).save(folder.path().join("r.png")).unwrap();
        let file = folder.path().join("prompts.jsonl");
        let lines = [
            r#"{"id": "a", "prompt": "a dog", "refs": [{"image": "r.png"}]}"#,
            r#"{"id": "b", "prompt": "a cat", "refs": [{"image": "r.png"}], "win": {"image": "absent.png"}}"#,
            r#"{"id": "c", "prompt": "a tree"}"#,
        ];
        std::fs::write(&file, lines.join("\n")).unwrap();
        let settings = PromptsSettings {
            path: DataPath(file.clone()),
            reference_height: 32,
            reference_width: 16,
            batch: 2,
            ..Default::default()
        };
        let op = Prompts::new(settings.clone()).unwrap();
        assert_eq!(op.variants(), 2);
        let bench = Bench::new();
        let batch = |step| op.forward(&bench.at(step), ()).unwrap().0;
        let (references, prompts, ids) = batch(1);
        assert_eq!(
            (&prompts.0[..], &ids.0[..]),
            (&["a dog", "a cat"].map(String::from)[..], &["a", "b"].map(String::from)[..])
        );
        assert_eq!((references.0.len(), references.0[0].height, references.0[0].width), (1, 32, 16));
        assert_eq!(references.0[0].picture(1)[..3], [9, 8, 7]);
        let (references, prompts, _) = batch(0);
        assert_eq!((references.0.len(), &prompts.0[..]), (0, &["a tree", "a tree"].map(String::from)[..]));

        // As samples for a cache: in the order of the file, and read in any number.
        let samples = op.samples().unwrap();
        assert_eq!(samples.iter().map(|s| s.variant).collect::<Vec<_>>(), [1, 1, 0]);
        assert!(samples[0].files == samples[1].files && samples[2].files.is_empty());
        assert!(samples[0].facts != samples[1].facts && samples[0].facts.contains("a dog"));
        let (read, (references, prompts, ids)) = op.read(&bench.ctx(), &[1]).unwrap().unwrap();
        assert_eq!((&read[..], references.0.len(), references.0[0].batch), (&[1][..], 1, 1));
        assert_eq!((&prompts.0[0][..], &ids.0[0][..]), ("a cat", "b"));

        std::fs::write(&file, "{\"id\": \"a\", \"prompt\": \"\", \"win\": 3}").unwrap();
        assert!(refused(settings).contains("line 1"), "a winner that is stated must be one");
    }

    #[test]
    fn one_prompt_needs_no_file() {
        let settings = PromptsSettings { prompt: Some("a dog".into()), ..Default::default() };
        let op = Prompts::new(settings.clone()).unwrap();
        let ((references, prompts, _), ()) = op.forward(&Bench::new().ctx(), ()).unwrap();
        assert!(references.0.is_empty() && prompts.0[0] == "a dog");
        let both = PromptsSettings { path: DataPath("x.jsonl".into()), ..settings.clone() };
        assert!(refused(both).contains("only one"));
        let absent = PromptsSettings { references: vec![DataPath("absent.png".into())], ..settings };
        assert!(refused(absent).contains("absent.png"));
        assert!(refused(PromptsSettings::default()).contains("a file of prompts is needed"));
        let odd = PromptsSettings { prompt: Some("x".into()), reference_width: 24, ..Default::default() };
        assert!(refused(odd).contains("reference_width is 24"));
    }
}
