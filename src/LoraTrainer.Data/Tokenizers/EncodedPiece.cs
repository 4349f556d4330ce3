namespace LoraTrainer.Data.Tokenizers;

/// <summary>A stretch of a text as ids.</summary>
/// <param name="Start">Its first UTF-16 unit.</param>
/// <param name="End">Behind its last.</param>
/// <param name="Token">The added token that it is, white space that the token swallows included; null: text between two.</param>
/// <param name="Ids">Its ids.</param>
internal readonly record struct EncodedPiece(int Start, int End, AddedToken? Token, int[] Ids);
