//! The subjects and prompts of DreamBench (Ruiz et al. 2023, github.com/google/dreambooth, CC BY 4.0), and the photographs and
//! pairs that UNO chose of them (github.com/bytedance/UNO, `datasets/dreambench_{singleip,multiip}.json`, Apache-2.0). Kosmos-G
//! and PatchDPO list the same photographs.

/// What a benchmark asks pictures of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The folder of its photographs.
    pub name: &'static str,
    /// What prompts call it.
    pub class: &'static str,
    /// The one photograph that is listed, without its extension.
    pub listed: &'static str,
}

impl Subject {
    /// Is it an animal? Those have prompts of their own.
    fn is_live(self) -> bool {
        matches!(self.class, "cat" | "dog")
    }
}

const fn subject(name: &'static str, class: &'static str, listed: &'static str) -> Subject {
    Subject { name, class, listed }
}

/// All 30, in UNO's order.
pub(super) const SUBJECTS: [Subject; 30] = [
    subject("backpack", "backpack", "02"),
    subject("backpack_dog", "backpack", "02"),
    subject("bear_plushie", "stuffed animal", "03"),
    subject("berry_bowl", "bowl", "02"),
    subject("can", "can", "01"),
    subject("candle", "candle", "02"),
    subject("cat", "cat", "04"),
    subject("cat2", "cat", "02"),
    subject("clock", "clock", "03"),
    subject("colorful_sneaker", "sneaker", "01"),
    subject("dog", "dog", "02"),
    subject("dog2", "dog", "02"),
    subject("dog3", "dog", "05"),
    subject("dog5", "dog", "00"),
    subject("dog6", "dog", "02"),
    subject("dog7", "dog", "01"),
    subject("dog8", "dog", "04"),
    subject("duck_toy", "toy", "01"),
    subject("fancy_boot", "boot", "02"),
    subject("grey_sloth_plushie", "stuffed animal", "04"),
    subject("monster_toy", "toy", "04"),
    subject("pink_sunglasses", "glasses", "04"),
    subject("poop_emoji", "toy", "00"),
    subject("rc_car", "toy", "03"),
    subject("red_cartoon", "cartoon", "00"),
    subject("robot_toy", "toy", "00"),
    subject("shiny_sneaker", "sneaker", "01"),
    subject("teapot", "teapot", "04"),
    subject("vase", "vase", "02"),
    subject("wolf_plushie", "stuffed animal", "04"),
];

/// Photographs of all subjects in the published data set.
pub const PHOTOGRAPHS: usize = 158;

/// UNO's pairs, in its order.
const PAIRS: [(&str, &str); 30] = [
    ("backpack_dog", "bear_plushie"),
    ("berry_bowl", "can"),
    ("candle", "clock"),
    ("colorful_sneaker", "duck_toy"),
    ("fancy_boot", "grey_sloth_plushie"),
    ("monster_toy", "pink_sunglasses"),
    ("poop_emoji", "rc_car"),
    ("red_cartoon", "robot_toy"),
    ("shiny_sneaker", "teapot"),
    ("vase", "wolf_plushie"),
    ("cat", "dog"),
    ("cat", "dog6"),
    ("cat", "dog8"),
    ("cat2", "cat"),
    ("cat2", "dog3"),
    ("cat2", "dog7"),
    ("dog", "dog2"),
    ("dog3", "dog5"),
    ("dog6", "dog7"),
    ("dog7", "dog8"),
    ("cat", "backpack"),
    ("cat2", "bear_plushie"),
    ("dog", "can"),
    ("dog2", "clock"),
    ("dog3", "duck_toy"),
    ("dog5", "grey_sloth_plushie"),
    ("dog6", "pink_sunglasses"),
    ("dog7", "rc_car"),
    ("dog8", "robot_toy"),
    ("dog6", "teapot"),
];

/// What every subject is shown in.
const SCENES: [&str; 10] = [
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
];

/// What only objects are shown in.
const OF_OBJECTS: [&str; 10] = [
    "with a wheat field in the background",
    "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background",
    "floating on top of water",
    "floating in an ocean of milk",
    "on top of green grass with sunflowers around it",
    "on top of a mirror",
    "on top of the sidewalk in a crowded street",
    "on top of a dirt road",
    "on top of a white rug",
];

/// What only animals are shown in.
const OF_ANIMALS: [&str; 10] = [
    "wearing a red hat",
    "wearing a santa hat",
    "wearing a rainbow scarf",
    "wearing a black top hat and a monocle",
    "in a chef outfit",
    "in a firefighter outfit",
    "in a police outfit",
    "wearing pink glasses",
    "wearing a yellow shirt",
    "in a purple wizard outfit",
];

/// How a subject is changed.
const CHANGES: [&str; 5] = ["red", "purple", "shiny", "wet", "cube shaped"];

/// The prompts of one subject.
pub(super) fn prompts_of(subject: Subject) -> Vec<String> {
    let class = subject.class;
    let own = if subject.is_live() { OF_ANIMALS } else { OF_OBJECTS };
    let scenes = SCENES.into_iter().chain(own).map(|scene| format!("a {class} {scene}"));
    scenes.chain(CHANGES.map(|change| format!("a {change} {class}"))).collect()
}

/// The prompts of a pair: of two objects both are changed, else the first, which is an animal.
pub(super) fn prompts_of_pair([first, second]: [Subject; 2]) -> Vec<String> {
    let (a, b) = (first.class, second.class);
    let together = |scene| format!("a {a} and a {b} {scene}");
    let beside = |first: String| format!("{first}, next to it is a {b}");
    let mut prompts: Vec<String> = SCENES.map(together).into();
    if first.is_live() {
        prompts.extend(OF_ANIMALS.map(|outfit| beside(format!("a {a} {outfit}"))));
        prompts.extend(CHANGES.map(|change| beside(format!("a {change} {a}"))));
    } else {
        prompts.extend(OF_OBJECTS.map(together));
        prompts.extend(CHANGES.map(|change| format!("a {change} {a} and a {change} {b}")));
    }
    prompts
}

/// UNO's pairs, as numbers of subjects.
pub(super) fn pairs() -> impl Iterator<Item = [usize; 2]> {
    let number = |name: &str| SUBJECTS.iter().position(|s| s.name == name).expect("a subject of the list");
    PAIRS.into_iter().map(move |(first, second)| [number(first), number(second)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of every line `PROMPT\tPHOTOGRAPH[\tPHOTOGRAPH]\n`.
    fn digest(lines: impl Iterator<Item = (String, Vec<Subject>)>) -> (usize, String) {
        let mut hash = blake3::Hasher::new();
        let mut count = 0;
        for (prompt, subjects) in lines {
            let photographs = subjects.iter().map(|s| format!("\t{}/{}.jpg", s.name, s.listed));
            hash.update(format!("{prompt}{}\n", photographs.collect::<String>()).as_bytes());
            count += 1;
        }
        (count, hash.finalize().to_hex().to_string())
    }

    /// The digests are those of UNO's two files, in their order.
    #[test]
    fn prompts_photographs_and_pairs_are_those_of_unos_lists() {
        let single = SUBJECTS.iter().flat_map(|s| prompts_of(*s).into_iter().map(move |p| (p, vec![*s])));
        assert_eq!(
            digest(single),
            (750, "d3bcb3bfac6075a79de8ba4df53031b16f4220c117598a5889b0a30c2af71ca7".into())
        );
        let pairs = pairs().map(|pair| pair.map(|number| SUBJECTS[number]));
        let multi = pairs.flat_map(|pair| prompts_of_pair(pair).into_iter().map(move |p| (p, pair.to_vec())));
        assert_eq!(
            digest(multi),
            (750, "9c2395b4df3da35ff2d6215536c2045875151e40fa44d1ed7ddafc5df4404f92".into())
        );
    }
}
