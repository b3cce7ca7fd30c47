//! What the configuration of a T5 encoder decides.

use super::*;
use crate::encoders::config::EncoderConfig;

fn published() -> T5Config {
    serde_json::from_str(
        r#"{"model_type": "t5", "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
        "num_heads": 64, "relative_attention_num_buckets": 32, "layer_norm_epsilon": 1e-6, "is_gated_act": true,
        "dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu"}"#,
    )
    .unwrap()
}

fn without_weights() -> T5 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    crate::files::write_safetensors(&path, &[], &[]).unwrap();
    let files = crate::files::TensorFiles::open(&path).unwrap();
    let source = PrefixedFiles::new(Arc::new(files), "", &[]);
    T5 { config: published(), source, table: TABLES[0], weights: OnceLock::new() }
}

#[test]
fn a_prompt_of_512_tokens_takes_half_a_gigabyte_and_five_trillion_operations() {
    let cost = without_weights().cost(1, 512);
    assert!((400 << 20..600 << 20).contains(&cost.scratch_bytes), "{cost:?}");
    // Two for every value of a matrix and every token, and the scores.
    let matrices = 2.0 * 512.0 * (4_762_310_656.0 - 32128.0 * 4096.0);
    assert!((matrices..1.05 * matrices).contains(&cost.forward_flops), "{cost:?} {matrices}");
}

#[test]
fn classes_of_distances_begin_where_the_reference_implementation_lets_them_begin() {
    let t5 = without_weights();
    // Of transformers' T5Attention, with 32 classes and 128 as the largest distance.
    let starts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
    for distance in 0..600isize {
        let class = starts.iter().rposition(|s| *s <= distance).unwrap();
        assert_eq!(t5.bucket(-distance), class, "{distance}");
        if distance > 0 {
            assert_eq!(t5.bucket(distance), 16 + class, "{distance}");
        }
    }
}

#[test]
fn a_configuration_that_cannot_be_run_is_refused_with_what_was_expected() {
    type Fault = (fn(&mut T5Config), &'static str);
    let faults: [Fault; 5] = [
        (|c| c.dense_act_fn = Some("relu".into()), "expected a gated one with gelu_new"),
        (
            |c| (c.is_gated_act, c.feed_forward_proj) = (Some(false), Some("relu".into())),
            "expected a gated one with gelu_new",
        ),
        (|c| c.relative_attention_num_buckets = 6, "multiple of 4"),
        (|c| c.relative_attention_max_distance = 8, "more than a quarter"),
        (|c| c.num_heads = 0, "must be positive"),
    ];
    published().check().unwrap();
    for (break_it, message) in faults {
        let mut config = published();
        break_it(&mut config);
        let error = config.check().unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}
