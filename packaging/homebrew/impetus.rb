# Unverified: nobody on this project has a Mac, and no tag is published yet. How it is used: docs/install.md.
class Impetus < Formula
  include Language::Python::Virtualenv

  desc "Batch inference queue for Apple silicon: embeddings and generations"
  homepage "https://impetus.example/impetus"
  url "https://impetus.example/impetus.git", tag: "v0.1.0"
  license "Apache-2.0"
  head "https://impetus.example/impetus.git", branch: "main"

  depends_on arch: :arm64
  depends_on macos: :sequoia
  depends_on "python@3.12"

  def install
    virtualenv_create(libexec, "python3.12")
    pip = ["python3.12", "-m", "pip", "--python=#{libexec}/bin/python", "install"]
    # Wheels that were pinned with their hashes, and the checkout itself, for which nothing is fetched.
    system(*pip, "--require-hashes", "--requirement", "packaging/homebrew/requirements.txt")
    system(*pip, "--no-deps", "--no-build-isolation", ".")
    bin.install_symlink libexec/"bin/impetus", libexec/"bin/impetus-worker"
  end

  service do
    run [opt_bin/"impetus-worker", "run"]
    keep_alive successful_exit: false
    log_path var/"log/impetus.log"
    error_log_path var/"log/impetus.log"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/impetus --version")
    assert_match "embedding", shell_output("#{bin}/impetus-worker doctor --json")
  end
end
