//! What the encoders of a graph are, and where the graph departs from its preset.

use std::path::{Path, PathBuf};

use prefgraph_nn::{
    text::{Clip, ClipModel},
    vision::{Middle, Vit, vit::VitFamily},
};
use prefgraph_ops::operators::{
    benchmark::{BenchmarkSettings, Preset},
    picture_embedding::{Middle as StatedMiddle, PictureEmbedding, PictureEmbeddingSettings},
    stored_embedding::StoredEmbedding,
    text_embedding::TextEmbedding,
};
use serde_json::{Map, Value, json};

use crate::{cli::Failure, spec::Outline};

/// The nodes that scores of published tables come from.
pub(super) const DINO: &str = "dino";
pub(super) const CLIP_I: &str = "clip_i";

/// Every encoder with its files, for a report, and what of the graph is not as the preset says.
pub(super) struct Encoders {
    pub report: Value,
    pub departures: Vec<String>,
}

impl Encoders {
    /// Of this graph.
    pub fn of(outline: &Outline<'_>, preset: &Preset, settings: &BenchmarkSettings) -> Result<Self, Failure> {
        let (mut report, mut departures) = (Map::new(), Vec::new());
        let stated = settings.height.zip(settings.width);
        let is_drawn = !settings.real;
        if let (true, Some((height, width)), Some(side)) = (is_drawn, stated, preset.side)
            && (height, width) != (side, side)
        {
            departures.push(format!("pictures of {width} x {height} pixels, not {side} x {side}"));
        }
        for (node, settings) in outline.settings_of::<PictureEmbedding>()? {
            let path = place(settings.encoder.as_path(), "image_encoder");
            let vit = Vit::open(&path).map_err(|e| Failure::new(format!("node `{node}`: encoder: {e}")))?;
            let found = Found::of(&vit);
            departures.extend(found.departures(&node, preset, &settings));
            report.insert(node, json!({"sizes": found.text(), "files": files(&path)?}));
        }
        for (node, settings) in outline.settings_of::<StoredEmbedding>()? {
            let path = settings.path.as_path();
            report.insert(node, json!({"sizes": "computed by another program", "files": files(path)?}));
        }
        for (node, settings) in outline.settings_of::<TextEmbedding>()? {
            let path = settings.encoder.as_path();
            let clip = Clip::open(path, ClipModel::Pair)
                .map_err(|e| Failure::new(format!("node `{node}`: encoder: {e}")))?;
            let c = clip.config();
            let sizes = [c.hidden_size, c.num_hidden_layers, c.num_attention_heads, clip.pooled_width()];
            let text = format!(
                "CLIP text encoder, {} wide, {} blocks, {} heads, embeddings {} wide",
                sizes[0], sizes[1], sizes[2], sizes[3]
            );
            if is_drawn && sizes != [512, 12, 8, 512] {
                departures.push(format!("`{node}` is not that of CLIP ViT-B/32: {text}"));
            }
            let mut all = files(path)?;
            if !settings.tokenizer.is_empty() {
                all.extend(files(settings.tokenizer.as_path())?);
            }
            report.insert(node, json!({"sizes": text, "files": all}));
        }
        Ok(Self { report: report.into(), departures })
    }
}

/// The sizes of a vision encoder.
struct Found {
    family: VitFamily,
    /// Width, blocks, heads, side of a patch, side of a picture.
    sizes: [usize; 5],
    projection: Option<usize>,
}

impl Found {
    fn of(vit: &Vit) -> Self {
        let c = vit.config();
        Self {
            family: c.family,
            sizes: [c.width, c.layers, c.heads, c.patch, c.picture],
            projection: c.projection,
        }
    }

    fn text(&self) -> String {
        let [width, blocks, heads, patch, picture] = self.sizes;
        let family = match self.family {
            VitFamily::Clip => "CLIP image encoder",
            VitFamily::Dino => "DINO",
            VitFamily::Dinov2 => "DINOv2",
        };
        let projection = self.projection.map(|p| format!(", embeddings {p} wide")).unwrap_or_default();
        format!(
            "{family}, {width} wide, {blocks} blocks, {heads} heads, patches of {patch}, pictures of {picture} pixels{projection}"
        )
    }

    fn departures(&self, node: &str, preset: &Preset, stated: &PictureEmbeddingSettings) -> Vec<String> {
        let mut all = Vec::new();
        let side = stated.side.unwrap_or(self.sizes[4]);
        let shortest = stated.shortest.unwrap_or(side);
        match node {
            DINO => {
                if (self.family, self.sizes) != (VitFamily::Dino, [384, 12, 6, 16, 224]) {
                    all.push(format!("`{node}` is not DINO ViT-S/16: {}", self.text()));
                }
                if (side, shortest) != (self.sizes[4], preset.dino_shortest) {
                    all.push(format!(
                        "`{node}` sees a square of {side} out of a shortest side of {shortest} pixels"
                    ));
                }
                if stated.middle != StatedMiddle::Even {
                    all.push(format!("`{node}` sees another middle of a picture than torchvision's"));
                }
            }
            CLIP_I => {
                let sizes = [768, 12, 12, 32, 224];
                if (self.family, self.sizes, self.projection) != (VitFamily::Clip, sizes, Some(512)) {
                    all.push(format!("`{node}` is not CLIP ViT-B/32: {}", self.text()));
                }
                if shortest != side {
                    all.push(format!(
                        "`{node}` sees a square of {side} out of a shortest side of {shortest} pixels"
                    ));
                }
                let middle = match stated.middle {
                    StatedMiddle::Even => Middle::Even,
                    StatedMiddle::Floor => Middle::Floor,
                };
                if middle != preset.clip_middle {
                    all.push(format!("`{node}` sees another middle of a picture than the preset's"));
                }
            }
            // An encoder of one's own, beside those of the tables.
            _ => {}
        }
        all
    }
}

/// The folder of this name below a checkpoint's, else the path itself: as the operators find it.
fn place(path: &Path, name: &str) -> PathBuf {
    let inside = path.join(name);
    if !path.join("config.json").exists() && inside.is_dir() { inside } else { path.to_owned() }
}

/// The files of an encoder, with the BLAKE3 of each.
fn files(path: &Path) -> Result<Vec<Value>, Failure> {
    let fault = |path: &Path, e: &dyn std::fmt::Display| Failure::new(format!("{}: {e}", path.display()));
    let mut all = vec![path.to_owned()];
    if path.is_dir() {
        let read = |entry: std::io::Result<std::fs::DirEntry>| entry.map(|entry| entry.path());
        let entries = std::fs::read_dir(path).map_err(|e| fault(path, &e))?;
        all = entries.map(read).collect::<Result<_, _>>().map_err(|e| fault(path, &e))?;
        let counts = |path: &PathBuf| {
            path.extension().is_some_and(|e| ["json", "safetensors", "txt"].iter().any(|k| e == *k))
        };
        all.retain(counts);
        all.sort();
    }
    let one = |path: &PathBuf| {
        let mut hash = blake3::Hasher::new();
        let file = std::fs::File::open(path).map_err(|e| fault(path, &e))?;
        hash.update_reader(file).map_err(|e| fault(path, &e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(json!({"file": name, "blake3": hash.finalize().to_hex().to_string()}))
    };
    all.iter().map(one).collect()
}
