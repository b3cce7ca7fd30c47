use dfdx::shapes::Const;
use prefgraph_nn::{Cpu, Device, Tensor, cuda::Cuda};

/// A batch of latents with a constant number of channels, on a device.
type Latents<const C: usize, D> = Tensor<(usize, Const<C>, usize, usize), D>;

/// A network takes what lives where it runs.
fn predict<D: Device>(_: &D, _: &Latents<16, D>) {}

fn on_gpu(gpu: &Cuda, host: &Cpu) -> Result<(), prefgraph_nn::Error> {
    let good: Latents<16, Cuda> = Tensor::new(gpu, (1, Const, 2, 2), [0.0; 64])?;
    predict(gpu, &good);

    let narrow: Latents<4, Cuda> = Tensor::new(gpu, (1, Const, 2, 2), [0.0; 16])?;
    predict(gpu, &narrow);

    let tokens: Tensor<(usize, Const<16>), Cuda> = Tensor::new(gpu, (4, Const), [0.0; 64])?;
    predict(gpu, &tokens);

    let elsewhere: Latents<16, Cpu> = Tensor::new(host, (1, Const, 2, 2), [0.0; 64])?;
    predict(gpu, &elsewhere);
    Ok(())
}

fn main() {
    let _ = on_gpu;
}
