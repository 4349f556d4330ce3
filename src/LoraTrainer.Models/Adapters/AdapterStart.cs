using LoraTrainer.Engine.Numerics;
using LoraTrainer.Models.Architectures;
using LoraTrainer.Models.Formats;

namespace LoraTrainer.Models.Adapters;

/// <summary>
/// Adapters that start from the base's own weights: A0 and B0 are taken out of each adapted W, and what is trained beside them is W - s B0 A0, rounded as the
/// file stores it and quantized after that. PiSSA (Meng et al. 2024) takes the largest singular values, s B0 A0 = U_r S_r V_r^T; OLoRA (Buyukakyuz 2024)
/// the first columns of Q and rows of R of W = Q R. The decompositions are deterministic: a run that is resumed makes the same start again.
/// </summary>
public sealed class AdapterStart
{
    /// <summary>Values of <see cref="AdapterConfig.InitLoraWeights"/>.</summary>
    public const string Pissa = "pissa";

    public const string Olora = "olora";

    private readonly string method;
    private readonly Dictionary<string, TargetModule> targets;
    private readonly Dictionary<string, (float[] A, float[] B)> pairs = new(StringComparer.Ordinal);
    private readonly PeftAdapterFolder? given;

    private AdapterStart(AdapterConfig config, ModelConfig model, PeftAdapterFolder? given)
    {
        this.given = given;
        method = config.InitLoraWeights;
        targets = TargetModules.Select(config, model.ModelType, LoraInjection.Modules(model)).Targets.ToDictionary(target => target.Path, StringComparer.Ordinal);
    }

    /// <summary>Whether the adapter changes the base that it starts on.</summary>
    public static bool Changes(AdapterConfig config) => config.InitLoraWeights is Pissa or Olora;

    /// <summary>The start that the config asks for; null where the base stays as it is.</summary>
    /// <param name="config">Its targets are decomposed while the base is loaded.</param>
    /// <param name="model">The base.</param>
    public static AdapterStart? For(AdapterConfig config, ModelConfig model) => Changes(config) ? new AdapterStart(config, model, null) : null;

    /// <summary>A start whose A0 and B0 are known: nothing is decomposed.</summary>
    /// <param name="folder">The adapter as training began; must stay open while the base is loaded.</param>
    /// <param name="model">The base.</param>
    public static AdapterStart From(PeftAdapterFolder folder, ModelConfig model) => new(folder.Config, model, folder);

    /// <summary>(R, In) row-major</summary>
    internal float[] A(string module) => pairs[module].A;

    /// <summary>(Out, R) row-major</summary>
    internal float[] B(string module) => pairs[module].B;

    /// <summary>Whether the module's weight is changed.</summary>
    internal bool Applies(string module) => targets.ContainsKey(module);

    /// <summary>Decomposes W and leaves in its place what the adapter is trained beside.</summary>
    /// <param name="module">One that <see cref="Applies"/>.</param>
    /// <param name="weight">(rows, columns); changed in place.</param>
    /// <param name="rows">Out</param>
    /// <param name="columns">In</param>
    /// <param name="threads">Workers.</param>
    internal void Take(string module, float[] weight, int rows, int columns, int threads)
    {
        TargetModule target = targets[module];
        int rank = target.Rank;
        LoraInjection.CheckRank(module, rows, columns, rank);
        (float[] a, float[] b) = given is not null ? (Read(module, PeftTensorKind.LoraA), Read(module, PeftTensorKind.LoraB))
            : method == Pissa ? Principal(weight, rows, columns, target, threads)
            : Orthonormal(weight, rows, columns, rank, threads);
        pairs[module] = (a, b);
        new LowRankUpdate(a, b, rank, (float)-target.Scaling).Apply(weight, 0, threads);
    }

    /// <summary>[A; A0]: (2R, In).</summary>
    internal float[] StackedA(string module, float[] a) => [.. a, .. pairs[module].A];

    /// <summary>[B, -B0]: (Out, 2R).</summary>
    internal float[] StackedB(string module, float[] b)
    {
        float[] start = pairs[module].B;
        int rank = targets[module].Rank;
        float[] joined = new float[2 * b.Length];
        for (int row = 0; row < b.Length / rank; row++)
        {
            for (int k = 0; k < rank; k++)
            {
                joined[2 * row * rank + k] = b[row * rank + k];
                joined[(2 * row + 1) * rank + k] = -start[row * rank + k];
            }
        }

        return joined;
    }

    private static (float[] A, float[] B) Principal(float[] weight, int rows, int columns, TargetModule target, int threads)
    {
        int rank = target.Rank;
        TruncatedSvd svd = TruncatedSvd.Compute(weight, rows, columns, rank, threads);
        float[] a = new float[rank * columns], b = new float[rows * rank];
        for (int k = 0; k < rank; k++)
        {
            double root = Math.Sqrt(svd.S[k] / target.Scaling);
            for (int i = 0; i < columns; i++)
            {
                a[k * columns + i] = (float)(root * svd.V[k][i]);
            }

            for (int i = 0; i < rows; i++)
            {
                b[i * rank + k] = (float)(root * svd.U[k][i]);
            }
        }

        return (a, b);
    }

    private static (float[] A, float[] B) Orthonormal(float[] weight, int rows, int columns, int rank, int threads)
    {
        (double[] q, double[] r) = PartialQr.Compute(weight, rows, columns, rank, threads);
        return ([.. r.Select(value => (float)value)], [.. q.Select(value => (float)value)]);
    }

    private float[] Read(string module, PeftTensorKind kind) =>
        (given!.Find(module, kind) ?? throw new ModelFormatException($"{given.Path}: the adapter has no {new PeftAdapterFolderKey(module, kind)}.")).ReadSingles();
}
