//! Presets: every rule that two published tables of the same benchmark may differ in.

use prefgraph_nn::vision::Middle;
use serde_json::{Value, json};

use super::dreambench::{SUBJECTS, Subject, pairs, prompts_of, prompts_of_pair};
use crate::operator::OpError;

/// Which photographs of a subject a picture is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// All in its folder.
    All,
    /// The one that the lists name.
    Listed,
}

/// What a total is the mean of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mean {
    /// The means of the subjects, or of the pairs of subjects.
    Subjects,
    /// The scores of the pictures.
    Pictures,
    /// All comparisons of a picture with a photograph: a subject with more photographs counts for more.
    Comparisons,
}

/// Where a method's pictures lie in their folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `SUBJECT/PROMPT.png`; where a prompt has several pictures, `SUBJECT/PROMPT/N.png`.
    BySubject,
    /// `I_N.png`: picture N of the prompt that is number I of the list.
    Numbered,
}

/// How pictures are drawn that are not there, where a network draws them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// Of the first picture of a prompt; every further one has the next.
    pub seed: u64,
    /// Passes of the network.
    pub steps: usize,
    /// Of networks that take one.
    pub guidance: Option<f64>,
    /// What networks avoid that draw with classifier-free guidance.
    pub negative: Option<&'static str>,
    /// Pixels along each side of a picture.
    pub side: usize,
    /// Pixels along each side of a reference.
    pub reference: usize,
}

/// The rules of one published script.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// As graph files state it.
    pub name: &'static str,
    /// What it follows.
    pub script: &'static str,
    /// Does a picture show two subjects?
    pub paired: bool,
    /// Pictures of each prompt.
    pub per_prompt: usize,
    /// Pixels along each side of a picture; nothing where no script says it.
    pub side: Option<usize>,
    /// Where pictures lie.
    pub layout: Layout,
    /// What pictures are compared with.
    pub compared: Compared,
    /// The order of means.
    pub mean: Mean,
    /// Does a negative cosine of picture and prompt count as zero?
    pub floor: bool,
    /// What all scores are multiplied by.
    pub scale: f64,
    /// Pixels of the shortest side of what DINO's square is cut out of.
    pub dino_shortest: usize,
    /// Which square CLIP sees.
    pub clip_middle: Middle,
    /// What the script computed in.
    pub dtype: &'static str,
    /// How pictures are drawn; nothing where the method is trained for each subject, or sees all photographs at once.
    pub drawn: Option<Drawn>,
}

/// PatchDPO's script, over which the others state what they change.
const PATCHDPO: Preset = Preset {
    name: "dreambench/patchdpo-original",
    script: "PatchDPO, evaluation/evaluate_dreambooth_func.py, is_kosmosg=False",
    paired: false,
    per_prompt: 1,
    side: Some(512),
    layout: Layout::BySubject,
    compared: Compared::All,
    mean: Mean::Subjects,
    floor: false,
    scale: 1.0,
    dino_shortest: 256,
    clip_middle: Middle::Even,
    dtype: "CLIP in f16, DINO in f32",
    drawn: None,
};

const UNO: Preset = Preset {
    name: "dreambench/uno-single",
    script: "UNO, eval/evaluate_clip_dino_score_single_subject.py",
    layout: Layout::Numbered,
    floor: true,
    drawn: Some(Drawn {
        seed: 3407,
        steps: 25,
        guidance: Some(4.0),
        negative: None,
        side: 512,
        reference: 512,
    }),
    ..PATCHDPO
};

/// All that there are.
pub const PRESETS: [Preset; 6] = [
    PATCHDPO,
    Preset {
        name: "dreambench/patchdpo-kosmos",
        script: "PatchDPO, evaluation/evaluate_dreambooth_func.py, is_kosmosg=True",
        compared: Compared::Listed,
        drawn: Some(Drawn {
            seed: 42,
            steps: 30,
            guidance: None,
            negative: Some("monochrome, lowres, bad anatomy, worst quality, low quality"),
            side: 512,
            reference: 512,
        }),
        ..PATCHDPO
    },
    Preset {
        name: "dreambench/kosmos-single",
        script: "Kosmos-G, its evaluation of DreamBench with CLIP ViT-B/32 of transformers",
        per_prompt: 4,
        compared: Compared::Listed,
        mean: Mean::Pictures,
        scale: 100.0,
        clip_middle: Middle::Floor,
        dtype: "f32",
        drawn: None,
        ..PATCHDPO
    },
    UNO,
    Preset {
        name: "dreambench/uno-multi",
        script: "UNO, eval/evaluate_clip_dino_score_multi_subject.py",
        paired: true,
        drawn: Some(Drawn {
            seed: 3407,
            steps: 25,
            guidance: Some(4.0),
            negative: None,
            side: 512,
            reference: 320,
        }),
        ..UNO
    },
    Preset {
        name: "dreambench/dreambooth-4x",
        script: "DreamBooth (Ruiz et al. 2023), section 4.1; no script is published",
        per_prompt: 4,
        side: None,
        mean: Mean::Comparisons,
        dtype: "not stated",
        ..PATCHDPO
    },
];

/// A subject or a pair, with its prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The subject, or both, joined by `+`.
    pub name: String,
    /// Numbers of the subjects.
    pub subjects: Vec<usize>,
    /// Its prompts.
    pub prompts: Vec<String>,
}

impl Preset {
    /// The preset of this name.
    ///
    /// # Errors
    /// If there is none; the message lists all.
    pub fn of(name: &str) -> Result<&'static Self, OpError> {
        PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
            let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
            OpError::new(format!("preset {name:?}: the presets are {}", names.join(", ")))
        })
    }

    /// All subjects, by number.
    pub fn subjects(&self) -> &'static [Subject] {
        &SUBJECTS
    }

    /// What is asked for, in the order of the lists.
    pub fn groups(&self) -> Vec<Group> {
        if self.paired {
            let group = |pair: [usize; 2]| {
                let [first, second] = pair.map(|number| SUBJECTS[number]);
                Group {
                    name: format!("{}+{}", first.name, second.name),
                    subjects: pair.into(),
                    prompts: prompts_of_pair([first, second]),
                }
            };
            return pairs().map(group).collect();
        }
        let group = |(number, subject): (usize, &Subject)| Group {
            name: subject.name.into(),
            subjects: vec![number],
            prompts: prompts_of(*subject),
        };
        SUBJECTS.iter().enumerate().map(group).collect()
    }

    /// The rules, for a report.
    pub fn rules(&self) -> Value {
        json!({
            "script": self.script,
            "subjects_of_a_picture": if self.paired { 2 } else { 1 },
            "pictures_of_a_prompt": self.per_prompt,
            "side_of_a_picture": self.side,
            "files": match (self.layout, self.per_prompt) {
                (Layout::BySubject, 1) => "SUBJECT/PROMPT.png",
                (Layout::BySubject, _) => "SUBJECT/PROMPT/N.png",
                (Layout::Numbered, _) => "I_N.png",
            },
            "compared_with": match self.compared {
                Compared::All => "all photographs of the subject",
                Compared::Listed => "the listed photograph of the subject",
            },
            "pairing": "every picture with every photograph that it is compared with; mean over its subjects",
            "total": match self.mean {
                Mean::Subjects => "mean over subjects, or pairs of subjects, of their means",
                Mean::Pictures => "mean over pictures",
                Mean::Comparisons => "mean over all comparisons",
            },
            "negative_clip_t": if self.floor { "counts as 0" } else { "counts as it is" },
            "scale": self.scale,
            "encoders": {
                "dino": "DINO ViT-S/16, class token after the last norm",
                "clip": "CLIP ViT-B/32, projected embeddings of picture and prompt",
            },
            "preprocessing": {
                "dino": format!("shortest side to {} (bicubic, antialiased, 8 bits), middle square", self.dino_shortest),
                "clip": match self.clip_middle {
                    Middle::Even => "shortest side to the encoder's (bicubic, antialiased, 8 bits), middle square as torchvision cuts it",
                    Middle::Floor => "shortest side to the encoder's (bicubic, antialiased, 8 bits), middle square as transformers cuts it",
                },
            },
            "computed_in": "f32",
            "script_computed_in": self.dtype,
            "drawn": self.drawn.map(|drawn| json!({
                "seed": drawn.seed, "steps": drawn.steps, "guidance": drawn.guidance, "negative": drawn.negative, "side": drawn.side,
                "side_of_a_reference": drawn.reference, "references": "the listed photograph of each subject",
            })),
        })
    }
}
