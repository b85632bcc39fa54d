// Records a picture and updates an edit of it from an exported folder, without Python:
//
//   aoti_update FOLDER RECORDED EDITED RESULT
//
// FOLDER is what sparse.export(folder, ..., format="aoti") wrote. RECORDED and EDITED are
// safetensors files with the inputs by name; EDITED has the "mask" too. The first output of the
// update is written to RESULT as raw values.

#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using Values = std::map<std::string, at::Tensor>;

static at::ScalarType dtype_of(const std::string& name) {
  static const std::map<std::string, at::ScalarType> dtypes = {
      {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf}, {"BF16", at::kBFloat16},
      {"I64", at::kLong},   {"I32", at::kInt},   {"U8", at::kByte},  {"BOOL", at::kBool}};
  return dtypes.at(name);
}

// All tensors of a safetensors file: 8 bytes of length, a JSON header, the data.
static Values read_safetensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::uint64_t length = 0;
  file.read(reinterpret_cast<char*>(&length), sizeof length);
  std::string header(length, ' ');
  file.read(header.data(), static_cast<std::streamsize>(length));
  const std::regex entry(
      R"re("([^"]+)":\{"dtype":"(\w+)","shape":\[([\d,]*)\],"data_offsets":\[(\d+),(\d+)\])re");
  Values values;
  for (std::sregex_iterator at(header.begin(), header.end(), entry), end; at != end; ++at) {
    std::vector<std::int64_t> shape;
    std::stringstream sizes((*at)[3].str());
    for (std::string size; std::getline(sizes, size, ',');) shape.push_back(std::stoll(size));
    const auto start = std::stoull((*at)[4].str()), stop = std::stoull((*at)[5].str());
    at::Tensor tensor = at::empty(shape, at::TensorOptions().dtype(dtype_of((*at)[2].str())));
    file.seekg(static_cast<std::streamoff>(8 + length + start));
    file.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(stop - start));
    values[(*at)[1].str()] = tensor;
  }
  return values;
}

// A package; its metadata name what it takes and returns.
class Graph {
 public:
  explicit Graph(const std::string& path) : loader_(path) {
    auto metadata = loader_.get_metadata();
    inputs_ = lines(metadata["inputs"]);
    weights_ = lines(metadata["weights"]);
    outputs_ = lines(metadata["outputs"]);
  }

  Values operator()(const Values& values, const Values& weights) {
    std::vector<at::Tensor> given;
    for (const auto& name : inputs_) given.push_back(values.at(name));
    for (const auto& name : weights_) given.push_back(weights.at(name));
    const auto results = loader_.run(given);
    Values named;
    for (std::size_t i = 0; i < outputs_.size(); ++i) named[outputs_[i]] = results.at(i);
    return named;
  }

 private:
  static std::vector<std::string> lines(const std::string& text) {
    std::vector<std::string> names;
    std::stringstream stream(text);
    for (std::string name; std::getline(stream, name);) names.push_back(name);
    return names;
  }

  torch::inductor::AOTIModelPackageLoader loader_;
  std::vector<std::string> inputs_, weights_, outputs_;
};

// What `first` has, and of `second` what it lacks.
static Values joined(Values first, const Values& second) {
  first.insert(second.begin(), second.end());
  return first;
}

int main(int argc, char** argv) {
  if (argc != 5) throw std::runtime_error("usage: aoti_update FOLDER RECORDED EDITED RESULT");
  const std::string folder = std::string(argv[1]) + "/";
  Values weights = read_safetensors(folder + "weights.safetensors");
  if (std::filesystem::exists(folder + "constants.pt2"))  // constants made from weights, once
    weights = joined(Graph(folder + "constants.pt2")({}, weights), weights);

  Graph record(folder + "record.pt2"), plan(folder + "plan.pt2"), update(folder + "update.pt2");
  const Values baseline = record(read_safetensors(argv[2]), weights);
  const Values edited = read_safetensors(argv[3]);
  const Values tables = plan(edited, weights);
  const Values result = update(joined(joined(edited, tables), baseline), weights);

  const at::Tensor output = result.at("output.0").contiguous();
  std::ofstream file(argv[4], std::ios::binary);
  file.write(static_cast<const char*>(output.data_ptr()),
             static_cast<std::streamsize>(output.nbytes()));
  return file ? 0 : 1;
}
