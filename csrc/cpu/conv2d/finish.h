// For every kernel of conv2d under the name it knows.
#include "cpu/finish.h"
