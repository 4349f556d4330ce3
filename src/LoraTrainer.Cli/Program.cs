using LoraTrainer.Cli;

return (int)await CommandLine.RunAsync(args);
